// The page: a request from the form, its images and shares as they come.

import { fileOf, generate, manifestText, model, Problem, useKey } from "./api.js";
import { Balance } from "./balance.js";
import { Gallery } from "./gallery.js";

const AGAIN_MS = 2000; // between two tries to reach the server

const part = (id) => document.getElementById(id);
const form = part("request");
let gallery = null; // these two, once the server has told its model
let balance = null;
let running = null; // the AbortController of the request under way

async function connect() {
  let about;
  try {
    about = await model();
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    if (error.status === 401) {
      complain(error);
      part("about").textContent = "";
    } else {
      part("about").textContent = `${error.message} Trying again …`;
      setTimeout(connect, AGAIN_MS);
    }
    return;
  }
  part("access").hidden = true;
  describe(about);
}

function askForKey() {
  part("access").hidden = false;
  form.hidden = true;
  part("key").select();
}

/** Fits the form to the server's model. */
function describe(about) {
  document.title = `${about.id} · ddm-rt`;
  part("name").textContent = about.id;
  const over = about.factors.map(({ name }) => name).join(" × ") || `${about.num_top_codes} top codes`;
  const codes = about.num_codes ? `${about.num_codes} codes in ${over}` : "no codes";
  part("about").textContent = [about.size.replace("x", " × "), codes, about.sampler].join(" · ");
  const [factor] = about.factors;
  const even = factor?.values.slice(0, 2).map((value) => `${factor.name}:${value}=.5`);
  if (factor) part("target-example").textContent = even.join(",");
  part("of-factors").hidden = !factor;
  part("prompt-field").hidden = about.prompt_free;
  part("target-field").hidden = part("scope-field").hidden = about.num_codes === 0;
  part("n").max = about.max_images;
  part("steps").max = about.max_steps;
  if (!part("steps").value) part("steps").value = about.num_steps;
  if (!gallery) part("scope").value = about.scope ?? "";
  form.hidden = false;
  gallery ??= new Gallery(
    {
      list: part("images"),
      nothing: part("nothing"),
      saving: part("saving"),
      again: part("again"),
      manifest: part("manifest"),
    },
    about,
  );
  balance ??= new Balance(
    {
      section: part("balance"),
      basis: part("basis"),
      shownField: part("shown-field"),
      shown: part("shown"),
      assigned: part("assigned"),
      measured: part("measured"),
      explained: part("explained"),
      noExamples: part("no-examples"),
      examplesLegend: part("examples-legend"),
      intervals: part("intervals"),
      mine: part("mine"),
    },
    about,
  );
}

/** What the form asks for, in the server's words. Fields that are hidden or empty are left out, but for no scope. */
function asked() {
  const request = {};
  for (const field of form.elements) {
    if (!field.name || field.closest("[hidden]")) continue;
    if (field.value !== "") request[field.name] = field.type === "number" ? field.valueAsNumber : field.value;
    else if (field.name === "scope") request.scope = null; // left out, it would be the server's
  }
  return request;
}

async function run() {
  running = new AbortController();
  const begun = performance.now();
  const tally = { n: 0, ready: 0 };
  complain(null);
  part("keep").hidden = true;
  busy(true);
  tell("Waiting for the server …");
  try {
    for await (const event of generate(asked(), running.signal)) take(event, tally);
    const seconds = ((performance.now() - begun) / 1000).toFixed(1);
    tell(`${images(tally.n)} in ${seconds} s.`);
  } catch (error) {
    if (running.signal.aborted) {
      tell(tally.n ? `Cancelled; ${tally.ready} of ${images(tally.n)} were finished.` : "Cancelled.");
    } else if (error instanceof Problem) {
      tell("");
      complain(error);
    } else throw error;
  } finally {
    running = null;
    busy(false);
    gallery.end(tally.manifest);
    balance.end(tally.measured);
  }
}

function take(event, tally) {
  switch (event.type) {
    case "image_generation.started":
      tally.n = event.n;
      tally.seed = event.seed;
      tell(`Making ${images(event.n)} …`);
      gallery.begin(event);
      balance.begin(event);
      offerSeed(event.seed);
      break;
    case "image_generation.progress":
      part("progress").value = event.steps_done / event.steps_total;
      break;
    case "image_generation.completed":
      tally.ready += 1;
      putImage(event);
      break;
    case "image_generation.finished":
      tally.measured = event.measured;
      tally.manifest = { text: manifestText(event.manifest), seed: tally.seed };
      break;
  }
  part("count").textContent = `${tally.ready} of ${tally.n}`;
}

function putImage(event) {
  const file = fileOf(event);
  gallery.put(event, file);
  balance.put(event, file);
}

function offerSeed(seed) {
  part("keep").textContent = `Keep seed ${seed}`;
  part("keep").value = seed;
  part("keep").hidden = part("seed").value !== "" || !Number.isSafeInteger(seed);
}

function busy(now) {
  const [from, to] = now ? [part("generate"), part("cancel")] : [part("cancel"), part("generate")];
  const focused = document.activeElement === from;
  to.disabled = false;
  if (focused) to.focus();
  from.disabled = true;
  part("running").hidden = !now;
  part("progress").value = 0;
  part("count").textContent = "";
  part("images").setAttribute("aria-busy", now);
}

function tell(text) {
  part("status").textContent = text;
}

/** Says what went wrong, and at which field; null: nothing. */
function complain(problem) {
  part("problem").replaceChildren(...withCode(problem?.message ?? ""));
  for (const field of form.elements) field.removeAttribute("aria-invalid");
  if (problem?.status === 401) askForKey();
  const field = problem?.field && form.elements.namedItem(problem.field);
  if (!field) return;
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-errormessage", "problem");
  field.focus();
}

/** Text whose parts in backticks are code. A backtick alone stays one. */
function withCode(text) {
  return text.split(/`([^`]+)`/).map((piece, i) => {
    if (i % 2 === 0) return piece;
    const code = document.createElement("code");
    code.textContent = piece;
    return code;
  });
}

function images(n) {
  return n === 1 ? "1 image" : `${n} images`;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) run();
});
part("cancel").addEventListener("click", () => running?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
part("keep").addEventListener("click", () => {
  part("seed").value = part("keep").value;
  part("keep").hidden = true;
  part("seed").focus();
});
part("access").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(part("key").value);
  complain(null);
  connect();
});
connect();
