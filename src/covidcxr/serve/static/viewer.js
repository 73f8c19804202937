/** The image on the screen: where it lies, how large, under which window; and what is drawn over it. */

import { by, press } from "./dom.js";

const [LEAST, MOST] = [0.02, 40];

export class Viewer {
  image = null;
  painters = []; // (context, scale) => void, in the image's coordinates
  #scale = 1;
  #left = 0;
  #top = 0;
  #fitted = true;
  #planned = false;

  constructor(canvas) {
    this.canvas = canvas;
    new ResizeObserver(() => this.#resize()).observe(canvas);
    for (const id of ["width", "level"])
      by(id).addEventListener("input", () => this.setWindow(+by("width").value, +by("level").value));
    const buttons = {
      fit: () => this.fit(),
      whole: () => this.whole(),
      auto: () => this.setWindow(...this.image.spread()),
      reset: () => this.reset(),
      invert: () => this.invert(),
      "zoom-in": () => this.zoom(1.25),
      "zoom-out": () => this.zoom(0.8),
    };
    for (const [id, act] of Object.entries(buttons)) by(id).addEventListener("click", () => this.image && act());
  }

  /** Show an image, or nothing. */
  show(image) {
    this.image = image;
    this.fit();
    this.#tellWindow();
    this.draw();
  }

  /** Lay the whole image on the stage. */
  fit() {
    if (!this.image) return;
    const [width, height] = this.image.size;
    const [stageWidth, stageHeight] = this.#stage();
    this.#scale = Math.min(stageWidth / width, stageHeight / height);
    this.#left = (stageWidth - width * this.#scale) / 2;
    this.#top = (stageHeight - height * this.#scale) / 2;
    this.#fitted = true;
    this.draw();
  }

  /** One pixel of the image on one of the screen. */
  whole() {
    this.zoom(1 / devicePixelRatio / this.#scale);
  }

  /** Zoom by a factor; the place under (x, y), by default the middle of the stage, stays where it is. */
  zoom(factor, x = this.#stage()[0] / 2, y = this.#stage()[1] / 2) {
    const scale = Math.min(MOST, Math.max(LEAST, this.#scale * factor));
    this.#left = x - ((x - this.#left) * scale) / this.#scale;
    this.#top = y - ((y - this.#top) * scale) / this.#scale;
    this.#scale = scale;
    this.#fitted = false;
    this.draw();
  }

  /** Move the image by screen pixels; some of it always stays on the stage. */
  pan(x, y) {
    const [stageWidth, stageHeight] = this.#stage();
    const [width, height] = this.image.size.map((side) => side * this.#scale);
    this.#left = Math.min(stageWidth - 40, Math.max(40 - width, this.#left + x));
    this.#top = Math.min(stageHeight - 40, Math.max(40 - height, this.#top + y));
    this.#fitted = false;
    this.draw();
  }

  /** Set window width (2 to 510) and level (0 to 255), in grey values of the image. */
  setWindow(width, level) {
    if (!this.image) return;
    this.image.width = Math.min(510, Math.max(2, width));
    this.image.level = Math.min(255, Math.max(0, level));
    this.image.develop();
    this.#tellWindow();
    this.draw();
  }

  /** The window in which an image comes. */
  reset() {
    this.image.inverted = false;
    this.setWindow(255, 127.5);
  }

  /** White for black. */
  invert() {
    this.image.inverted = !this.image.inverted;
    this.setWindow(this.image.width, this.image.level);
  }

  /** A place on the stage in the image's coordinates. */
  toImage(x, y) {
    return [(x - this.#left) / this.#scale, (y - this.#top) / this.#scale];
  }

  /** The middle of the stage in the image's coordinates. */
  middle() {
    return this.toImage(...this.#stage().map((side) => side / 2));
  }

  /** Draw with the next frame. */
  draw() {
    if (this.#planned) return;
    this.#planned = true;
    requestAnimationFrame(() => {
      this.#planned = false;
      this.#draw();
    });
  }

  #draw() {
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.image) return;
    const scale = this.#scale * devicePixelRatio;
    context.setTransform(scale, 0, 0, scale, this.#left * devicePixelRatio, this.#top * devicePixelRatio);
    context.imageSmoothingEnabled = scale < 3; // beyond, single pixels are what one wants to see
    context.imageSmoothingQuality = "high";
    context.globalAlpha = 1;
    context.drawImage(this.image.canvas, 0, 0);
    for (const painter of this.painters) painter(context, scale);
    by("zoom").textContent = `${Math.round(100 * scale)} %`;
  }

  #stage() {
    return [this.canvas.clientWidth, this.canvas.clientHeight];
  }

  #resize() {
    const [width, height] = this.#stage();
    this.canvas.width = Math.round(width * devicePixelRatio);
    this.canvas.height = Math.round(height * devicePixelRatio);
    if (this.#fitted) this.fit();
    this.#draw(); // at once: a canvas that was resized is blank
  }

  #tellWindow() {
    const { width, level, inverted } = this.image ?? { width: 255, level: 127.5, inverted: false };
    by("width").value = width;
    by("level").value = level;
    press(by("invert"), inverted);
  }
}
