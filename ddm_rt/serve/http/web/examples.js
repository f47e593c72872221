// What codes look like: the latest image of each that this page has shown, small. The server has no such pictures:
// training images stay where they are.

const HEIGHT = 96; // pixels of a picture that is kept; up to here an image is kept as it is
const MOST = 16; // codes of one top code or value that are shown

export class Examples {
  #kept = new Map(); // code -> {top, picture}

  /** Keeps `file`, an image of this code, in the place of an earlier one. */
  async keep(file, { code, top_code: top }) {
    if (code < 0) return;
    const { width, height } = await createImageBitmap(file);
    const scale = Math.min(1, HEIGHT / height);
    const [resizeWidth, resizeHeight] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
    const small = await createImageBitmap(file, { resizeWidth, resizeHeight, resizeQuality: "high" });
    const picture = document.createElement("canvas");
    [picture.width, picture.height] = [resizeWidth, resizeHeight];
    picture.getContext("2d").drawImage(small, 0, 0);
    picture.setAttribute("aria-hidden", "true"); // its number stands below it
    picture.classList.toggle("pixels", scale === 1);
    this.#kept.set(code, { top, picture });
  }

  get none() {
    return this.#kept.size === 0;
  }

  /** Pairs of a code that `has` is true of and its picture, in the order of the codes. */
  of(has) {
    const own = [...this.#kept].filter(([code, { top }]) => has({ code, top_code: top }));
    return own
      .sort(([one], [other]) => one - other)
      .slice(0, MOST)
      .map(([code, { picture }]) => ({ code, picture }));
  }
}
