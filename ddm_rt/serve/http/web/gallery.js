// The images of one request: a place for each from the start, and each image in it once it is finished.

const TINY = 96; // pixels: up to here each pixel of an image is shown as a square of whole pixels
const WIDEST = 256;

export class Gallery {
  #list;
  #nothing;
  #urls = [];

  constructor(list, nothing) {
    this.#list = list;
    this.#nothing = nothing;
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
    this.#list.append(...started.images.map((image) => place(image)));
    this.#show(true);
  }

  /** Shows a finished image, `completed` being its event. `seed` is the request's. */
  put({ index, b64_json: content, output_format: format, ...image }, seed) {
    const url = URL.createObjectURL(blob(content, `image/${format}`));
    this.#urls.push(url);
    const spot = this.#list.children[index];
    const link = document.createElement("a");
    link.href = url;
    link.download = `ddm-${seed}-${index}.${format}`;
    const picture = document.createElement("img");
    picture.src = url;
    picture.alt = `Image ${index + 1}: ${caption(image).join(", ")}. Save it.`;
    link.append(picture);
    spot.querySelector(".frame").replaceChildren(link);
    spot.querySelector("p").replaceChildren(...lines(caption(image)));
    spot.classList.remove("pending");
  }

  /** Takes the places away that stayed empty. */
  end() {
    this.#list.querySelectorAll(".pending").forEach((spot) => spot.remove());
    this.#show(this.#list.children.length > 0);
  }

  clear() {
    this.#urls.forEach((url) => URL.revokeObjectURL(url));
    this.#urls = [];
    this.#list.replaceChildren();
    this.#show(false);
  }

  #show(some) {
    this.#list.hidden = !some;
    this.#nothing.hidden = some;
  }
}

function place(image) {
  const spot = document.createElement("li");
  spot.className = "pending";
  const frame = document.createElement("div");
  frame.className = "frame";
  const text = document.createElement("p");
  text.append(...lines(caption(image)));
  spot.append(frame, text);
  return spot;
}

function caption({ code, top_code: top, group }) {
  const assigned = code < 0 ? "no code" : `top code ${top}`;
  return group === undefined || group === null ? [assigned] : [assigned, `seen as ${group}`];
}

function lines(texts) {
  return texts.map((text) => {
    const line = document.createElement("span");
    line.textContent = text;
    return line;
  });
}

function blob(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (character) => character.charCodeAt(0))], { type });
}
