// Assigned and measured shares: of all requests that are balanced together, or of one request where none are.

import { balance, Problem } from "./api.js";
import { drawShares } from "./chart.js";
import { nameOf, partsOf } from "./codes.js";
import { Examples } from "./examples.js";
import { sameTarget, wantedShares } from "./target.js";

const SOON_MS = 400; // between two questions while images arrive
const IDLE_MS = 5000; // other clients' images count too

export class Balance {
  #parts;
  #model;
  #stream; // {scope, target, calibration_id}: whose shares are shown
  #images = []; // of the latest request
  #found = null; // the server's shares of its groups, with intervals
  #waiting = false;
  #asked = 0; // questions to the server so far
  #answered = 0; // the latest one whose answer is shown
  #examples = new Examples();

  /** `parts` are elements: section, basis, shownField, shown, assigned, explained, noExamples, examplesLegend, measured,
   * intervals, mine.
   */
  constructor(parts, model) {
    this.#parts = parts;
    this.#model = model;
    this.#stream = { scope: model.scope, target: "uniform" };
    if (model.num_codes === 0) this.#stream.scope = null;
    parts.section.hidden = model.num_codes === 0 && model.judge === null;
    if (model.judge) parts.measured.caption.textContent = `Measured by the judge “${model.judge.name}”`;
    parts.intervals.hidden = model.judge === null;
    parts.explained.hidden = model.num_codes === 0;
    parts.shown.addEventListener("change", () => {
      this.#stream = JSON.parse(parts.shown.value);
      this.#refresh();
    });
    this.#refresh();
    setInterval(() => document.visibilityState === "visible" && this.#refresh(), IDLE_MS);
  }

  /** A request's codes are drawn. */
  begin({ scope, target, calibration_id, images }) {
    this.#stream = { scope, target, calibration_id };
    this.#images = images.map(({ code, top_code }) => ({ code, top_code, group: null }));
    this.#found = null;
    this.#tell();
    this.#soon();
  }

  /** An image is ready: its event, and its file. */
  put({ index, group, ...image }, file) {
    this.#images[index].group = group ?? null;
    this.#tell();
    this.#examples.keep(file, image).then(() => this.#soon());
  }

  /** The request is over; `measured` are the shares that the judge found in it, where there are any. */
  end(measured) {
    this.#found = measured?.groups ?? null;
    this.#refresh();
  }

  #soon() {
    if (this.#waiting) return;
    this.#waiting = true;
    setTimeout(() => {
      this.#waiting = false;
      this.#refresh();
    }, SOON_MS);
  }

  async #refresh() {
    const stream = this.#stream;
    const { scope, target, calibration_id: calibration } = stream;
    const { basis } = this.#parts;
    const goal = (target) => (target === null ? [] : [" with the target ", strong(target)]);
    if (scope === null) {
      this.#offer([]);
      basis.replaceChildren(...(this.#images.length ? ["This request", ...goal(target), "."] : ["Each request by itself."]));
      this.#draw(this.#counts(), this.#found ?? shares(this.#groups()));
      return;
    }
    const question = ++this.#asked;
    try {
      const streams = await balance(scope);
      if (stream !== this.#stream || question < this.#answered) return; // a request, or a later answer, came between
      this.#answered = question;
      const known = streams.find(
        (found) =>
          sameTarget(found.target, target) && (calibration === undefined || found.calibration_id === calibration),
      );
      this.#offer(known ? streams : [stream, ...streams]);
      basis.replaceChildren("All requests in the scope ", strong(scope), ...goal(known?.target ?? target), ".");
      this.#draw(countsOf(known), known?.measured?.groups ?? []);
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      basis.textContent = `Not known now. ${error.message}`;
    }
  }

  /** Lets a person look at another target of the scope, where there are several. */
  #offer(streams) {
    const { shown, shownField } = this.#parts;
    const now = this.#stream;
    const options = streams.map(({ scope, target, calibration_id }) => {
      const own = sameTarget(target, now.target) && (now.calibration_id ?? calibration_id) === calibration_id;
      const name = calibration_id ? `${target} (calibration ${calibration_id.slice(0, 8)})` : target;
      return new Option(name, JSON.stringify({ scope, target, calibration_id }), false, own);
    });
    const values = (list) => JSON.stringify([...list].map((option) => option.value));
    const at = options.findIndex((option) => option.selected);
    if (values(options) !== values(shown.options)) shown.replaceChildren(...options);
    shown.selectedIndex = at;
    shownField.hidden = options.length < 2;
  }

  /** `counts` are the images of all codes, and by names as in a target; `groups` the judge's shares; what is not there
   * is 0.
   */
  #draw({ all, by }, groups) {
    const { assigned, measured } = this.#parts;
    const { num_codes: codes, judge, factors } = this.#model;
    const wanted = wantedShares(this.#stream.target, this.#model);
    if (codes > 0) {
      const rows = partsOf(this.#model).map(({ label, name, has }) => {
        const images = by.get(name) ?? 0;
        const share = all ? images / all : 0;
        return { label, images, share, wanted: wanted.get(name), examples: this.#examples.of(has) };
      });
      this.#parts.noExamples.hidden = !this.#examples.none;
      this.#parts.examplesLegend.hidden = this.#examples.none;
      drawShares(assigned, factors.length ? "Factor" : "Top code", rows);
      assigned.hidden = false;
    }
    if (judge) {
      const rows = judge.groups.map((group) => {
        const { images = 0, share = 0, low, high } = groups.find((found) => found.group === group) ?? {};
        return { label: group, images, share, low, high, wanted: wanted.get(group) };
      });
      drawShares(measured, "Group", rows);
      measured.hidden = false;
    }
  }

  /** Of the latest request. */
  #counts() {
    const images = this.#images.filter(({ code }) => code >= 0);
    const by = partsOf(this.#model).map(({ name, has }) => [name, images.filter(has).length]);
    return { all: images.length, by: new Map(by) };
  }

  #groups() {
    return count(this.#images.map((image) => image.group).filter((group) => group !== null));
  }

  #tell() {
    const named = count(this.#images.map((image) => nameOf(this.#model, image)));
    const groups = this.#groups();
    const told = (counts) =>
      [...counts]
        .sort()
        .map(([name, images]) => `${images} × ${name}`)
        .join(", ");
    const seen = groups.size ? `; seen: ${told(groups)}` : "";
    this.#parts.mine.textContent = `This request: ${told(named)}${seen}.`;
  }
}

/** Of a stream as the server tells it. */
function countsOf(stream) {
  const images = ({ done, in_progress: underWay }) => done + underWay;
  const tops = (stream?.top_codes ?? []).map((top) => [`code:${top.top_code}`, images(top)]);
  const values = (stream?.factors ?? []).flatMap(({ factor, values }) =>
    values.map((each) => [`${factor}:${each.value}`, images(each)]),
  );
  return { all: sum(new Map(tops)), by: new Map([...tops, ...values]) };
}

function strong(text) {
  const made = document.createElement("strong");
  made.textContent = text;
  return made;
}

function count(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return counts;
}

function sum(counts) {
  return [...counts.values()].reduce((total, images) => total + images, 0);
}

function shares(groups) {
  return [...groups].map(([group, images]) => ({ group, images, share: images / sum(groups) }));
}
