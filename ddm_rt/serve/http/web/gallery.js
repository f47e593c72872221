// The images of one request: a place for each from the start, and each image in it once it is finished.

import { nameOf } from "./codes.js";

const TINY = 96; // pixels: up to here each pixel of an image is shown as a square of whole pixels
const WIDEST = 256;
const ID_DIGITS = 12; // of the bundle's id in names of files

export class Gallery {
  #parts;
  #list;
  #model;
  #name; // what names of files begin with
  #urls = [];

  /** `parts` are elements: list, nothing, saving, again, manifest. Files are named after `model`. */
  constructor(parts, model) {
    this.#parts = parts;
    this.#list = parts.list;
    this.#model = model;
    this.#name = `${model.id}-${model.bundle_id.slice(0, ID_DIGITS)}`;
  }

  /** Makes the places, `started` being the request's first event. What was shown before goes. */
  begin(started) {
    this.clear();
    const [width, height] = started.size.split("x").map(Number);
    const tiny = width <= TINY;
    const shown = (about) => (tiny ? width * Math.max(1, Math.round(about / width)) : Math.min(width, WIDEST));
    this.#list.classList.toggle("tiny", tiny);
    for (const [name, value] of [
      ["--on-phone", `${shown(96)}px`],
      ["--on-screen", `${shown(128)}px`],
      ["--shape", `${width} / ${height}`],
    ]) {
      this.#list.style.setProperty(name, value);
    }
    this.#list.append(...started.images.map((image) => place(this.#caption(image))));
    this.#show(true);
  }

  /** Shows a finished image: `file` is what the server made, the rest is its event. */
  put({ index, seed, output_format: format, ...image }, file) {
    const spot = this.#list.children[index];
    const link = document.createElement("a");
    this.#saves(link, file, `seed-${seed}.${format}`);
    const picture = document.createElement("img");
    picture.src = link.href;
    picture.alt = `Image ${index + 1}: ${this.#caption(image).join(", ")}. Save it.`;
    link.append(picture);
    spot.querySelector(".frame").replaceChildren(link);
    spot.querySelector("p").replaceChildren(...lines(this.#caption(image)));
    spot.classList.remove("pending");
  }

  /** The request is over: takes the places away that stayed empty. `manifest`: its text and seed, where it finished. */
  end(manifest) {
    this.#list.querySelectorAll(".pending").forEach((spot) => spot.remove());
    this.#show(this.#list.children.length > 0);
    if (!manifest) return;
    const file = new Blob([manifest.text], { type: "application/json" });
    this.#saves(this.#parts.manifest, file, `seed-${manifest.seed}-manifest.json`);
    this.#parts.again.hidden = false;
  }

  clear() {
    this.#urls.forEach((url) => URL.revokeObjectURL(url));
    this.#urls = [];
    this.#list.replaceChildren();
    this.#parts.again.hidden = true;
    this.#show(false);
  }

  #caption({ group, ...image }) {
    const assigned = nameOf(this.#model, image) + (image.code < 0 ? "" : `, code ${image.code}`);
    return group === undefined || group === null ? [assigned] : [assigned, `seen as ${group}`];
  }

  #show(some) {
    this.#list.hidden = !some;
    this.#parts.nothing.hidden = some;
    this.#parts.saving.hidden = !some;
  }

  #saves(link, file, name) {
    link.href = URL.createObjectURL(file);
    link.download = `${this.#name}-${name}`;
    this.#urls.push(link.href);
  }
}

function place(caption) {
  const spot = document.createElement("li");
  spot.className = "pending";
  const frame = document.createElement("div");
  frame.className = "frame";
  const text = document.createElement("p");
  text.append(...lines(caption));
  spot.append(frame, text);
  return spot;
}

function lines(texts) {
  return texts.map((text) => {
    const line = document.createElement("span");
    line.textContent = text;
    return line;
  });
}
