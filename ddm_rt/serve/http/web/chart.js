// Bars of shares in a table, one row each: its numbers can be read without seeing the bars.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 22; // pixels of a bar's row
const HEADS = ["", "Chart", "Share", "Images"];

const percent = new Intl.NumberFormat("en", { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 });
const plain = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/**
 * Show `rows` of {label, images, share, low, high, wanted, examples}; `low` and `high` are the ends of an interval,
 * `wanted` the target's share, `examples` pictures of codes, each undefined where there is none. `what` heads the column
 * of labels.
 */
export function drawShares(table, what, rows) {
  if (table.dataset.labels !== JSON.stringify(rows.map((row) => row.label))) build(table, what, rows);
  const longest = Math.max(...rows.flatMap((row) => [row.share, row.high ?? 0, row.wanted ?? 0]));
  const full = Math.min(1, Math.max(longest, 2 / rows.length)); // the share at the right end
  const lines = table.tBodies[0].querySelectorAll("tr:not(.examples)");
  rows.forEach((row, i) => {
    update(lines[i], row, full);
    showExamples(lines[i].nextSibling, row);
  });
}

function build(table, what, rows) {
  table.dataset.labels = JSON.stringify(rows.map((row) => row.label));
  table.querySelectorAll("thead, tbody").forEach((part) => part.remove());
  const head = table.createTHead().insertRow();
  for (const title of HEADS) head.append(element("th", { scope: "col" }, title || what));
  const body = table.createTBody();
  for (const { label } of rows) {
    const line = body.insertRow();
    line.append(element("th", { scope: "row" }, label));
    line.insertCell().append(bar());
    line.insertCell();
    line.insertCell();
    const below = body.insertRow();
    below.className = "examples";
    below.hidden = true;
    below.insertCell().colSpan = HEADS.length;
  }
}

function bar() {
  const svg = shape("svg", { width: "100%", height: HEIGHT, "aria-hidden": "true" });
  svg.append(
    shape("rect", { class: "track", width: "100%", height: HEIGHT, rx: 4 }),
    shape("rect", { class: "bar", width: "0%", height: HEIGHT, rx: 4 }),
    shape("line", { class: "wanted", y1: 0, y2: HEIGHT }),
    shape("line", { class: "interval", y1: HEIGHT / 2, y2: HEIGHT / 2 }),
    shape("line", { class: "interval", y1: 6, y2: HEIGHT - 6 }),
    shape("line", { class: "interval", y1: 6, y2: HEIGHT - 6 }),
  );
  return svg;
}

function update(line, { images, share, low, high, wanted }, full) {
  const at = (value) => `${(100 * value) / full}%`;
  const [, fill, mark, ...whisker] = line.cells[1].firstChild.children;
  fill.setAttribute("width", at(share));
  place(mark, wanted, wanted, at);
  place(whisker[0], low, high, at);
  place(whisker[1], low, low, at);
  place(whisker[2], high, high, at);
  const interval = low === undefined ? "" : `${plain.format(100 * low)} – ${percent.format(high)}`;
  line.cells[2].replaceChildren(percent.format(share), element("small", {}, interval));
  line.cells[3].textContent = images;
}

/** In the row below: pictures of codes, with their numbers. */
function showExamples(line, { label, examples = [] }) {
  const shown = [...line.querySelectorAll("canvas")];
  if (shown.length === examples.length && examples.every(({ picture }, i) => picture === shown[i])) return;
  const list = element("ul", { role: "list", "aria-label": `Codes of ${label.toLowerCase()}` });
  for (const { code, picture } of examples) {
    const item = element("li", {}, "");
    item.append(picture, element("span", { class: "unseen" }, "Code "), `${code}`);
    list.append(item);
  }
  line.cells[0].replaceChildren(list);
  line.hidden = examples.length === 0;
}

function place(line, from, to, at) {
  line.setAttribute("visibility", from === undefined ? "hidden" : "visible");
  if (from === undefined) return;
  line.setAttribute("x1", at(from));
  line.setAttribute("x2", at(to));
}

function element(name, attributes, text) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
