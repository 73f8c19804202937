/** Correct a mask and run the model again: it predicts anew from what was drawn. */

import { putPng, remove, route } from "./api.js";
import { busy, by, make, percent, press, title, told, words } from "./dom.js";
import { answerOf } from "./worklist.js";

export class Correction {
  #edited = false;

  constructor(session, viewer, overlays, brush) {
    Object.assign(this, { session, viewer, overlays, brush });
    brush.changed = () => this.#tellChange();
    by("mask").addEventListener("change", () => this.#choose());
    by("size").addEventListener("input", () => this.#resize());
    by("brush").addEventListener("click", () => this.use(false));
    by("eraser").addEventListener("click", () => this.use(true));
    by("undo").addEventListener("click", () => brush.undo());
    by("ask").addEventListener(
      "click",
      told(() => this.ask()),
    );
    by("discard").addEventListener(
      "click",
      told(() => this.#reload()),
    );
    by("redraw").addEventListener(
      "click",
      told(() => this.#redraw()),
    );
    session.on("layers", (image) => this.#open(image));
    session.on("select", () => this.close());
  }

  /** Whether something was drawn that the server does not know. */
  get edited() {
    return this.#edited;
  }

  /** Take brush or eraser into the hand, or put it away. */
  use(erasing) {
    const { brush } = this;
    if (!brush.layer) return;
    brush.active = !(brush.active && brush.erasing === erasing);
    brush.erasing = erasing;
    if (brush.active) this.overlays.reveal(by("mask").value);
    this.#markTools();
  }

  /** Put the tool away. */
  rest() {
    this.brush.active = false;
    this.#markTools();
  }

  /** Make brush and eraser wider or narrower by a factor. */
  scale(factor) {
    by("size").value = Math.round(by("size").value * factor) + (factor > 1 ? 1 : 0);
    this.#resize();
  }

  /** Send the mask, and show what the answer has become. */
  async ask() {
    if (!this.#edited) return;
    await this.#renew((image) =>
      this.brush.layer.png().then((png) => putPng(route(image, "masks", by("mask").value), png)),
    );
  }

  /** Forget what was drawn; another image comes. */
  close() {
    this.brush.take(null);
    this.rest();
    by("moved").textContent = "";
    this.#mark(false);
  }

  #open(image) {
    const chosen = by("mask").value;
    const names = [...this.overlays.layers.keys()];
    by("mask").replaceChildren(...names.map((name) => make("option", { value: name, text: title(name) })));
    if (names.includes(chosen)) by("mask").value = chosen;
    by("size").max = Math.round(Math.max(image.width, image.height) / 4);
    this.#take();
    this.#resize();
  }

  #take() {
    const name = by("mask").value;
    const layer = this.overlays.layers.get(name) ?? null;
    this.brush.take(layer);
    for (const id of ["mask", "brush", "eraser", "size"]) by(id).disabled = !layer;
    by("redraw").hidden = !this.session.image?.corrected.includes(name);
    this.#mark(false);
  }

  async #choose() {
    const name = by("mask").value;
    if (this.#edited) await this.#reload(); // one mask at a time: an unsent one would be forgotten on the screen only
    by("mask").value = name;
    this.#take();
    this.overlays.reveal(name);
  }

  async #redraw() {
    await this.#renew(async (image) => (await remove(route(image, "masks", by("mask").value))).json());
  }

  async #renew(change) {
    const before = this.session.image;
    for (const id of ["ask", "discard", "undo"]) by(id).disabled = true;
    by("moved").textContent = "Running …";
    try {
      const image = await busy(by("ask"), change(before));
      this.#mark(false);
      this.brush.take(null); // until the masks are here: what is drawn meanwhile would be lost
      this.session.put(image, { masks: true });
      if (this.session.image?.id === image.id) by("moved").textContent = difference(before, image);
    } catch (error) {
      by("moved").textContent = "";
      this.#mark(this.brush.strokes > 0);
      throw error;
    }
  }

  #reload() {
    this.brush.take(null);
    by("moved").textContent = "";
    return this.overlays.load(this.session.image);
  }

  #resize() {
    this.brush.diameter = +by("size").value;
    this.viewer.draw();
  }

  #tellChange() {
    this.#mark(this.brush.strokes > 0);
    by("moved").textContent = this.#edited
      ? `${words(by("mask").value)} now ${percent(this.brush.layer.fraction, 1)} of the image. Re-run to update the prediction.`
      : "";
  }

  #mark(edited) {
    this.#edited = edited;
    for (const id of ["ask", "discard", "undo"]) by(id).disabled = !edited;
  }

  #markTools() {
    const { active, erasing } = this.brush;
    press(by("brush"), active && !erasing);
    press(by("eraser"), active && erasing);
    this.viewer.canvas.classList.toggle("drawing", active);
    this.viewer.draw();
  }
}

/** What a new answer has moved, in a sentence. */
function difference(before, after) {
  const figures = [
    ...Object.keys(after.probabilities).map((name) => [words(name), ({ probabilities }) => probabilities[name]]),
    ...Object.keys(after.areas).map((name) => [words(name), ({ areas }) => areas[name]?.lungs ?? areas[name]?.image]),
  ];
  const moves = figures
    .map(([name, of]) => [name, percent(of(before), 1), percent(of(after), 1)])
    .filter(([, was, is]) => was !== is)
    .map(([name, was, is]) => `${name} ${was} → ${is}`);
  const [was, is] = [answerOf(before), answerOf(after)];
  return [was === is ? `Still ${is}` : `${was} → ${is}`, ...moves].join("; ");
}
