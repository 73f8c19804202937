/** The layers over the image that is looked at, what of them is shown, and their buttons. */

import { blob, route } from "./api.js";
import { by, complain, make, press, title, words } from "./dom.js";
import { decode } from "./image.js";
import { HeatLayer, MaskLayer } from "./layers.js";

export class Overlays {
  layers = new Map(); // by mask class
  #hidden = new Set();
  #heat = new Map(); // by class: a layer, or the promise of one
  #heatOn = false;
  #on = true;

  constructor(session, viewer) {
    this.session = session;
    this.viewer = viewer;
    viewer.painters.push((context, scale) => this.#draw(context, scale));
    by("heat").addEventListener("click", () => this.toggleHeat());
    by("all").addEventListener("click", () => this.toggleAll());
    by("opacity").addEventListener("input", () => viewer.draw());
    by("heat-class").addEventListener("change", () => {
      this.#heatOn = this.#on = true; // who chooses a class wants to see it
      this.#showHeat();
    });
    session.on("masks", (image) => this.load(image).catch(complain));
  }

  /** Fetch an image's masks; the image itself may be another by the time they are here. */
  async load(image) {
    const { mask_classes: order, mask_colors: colors } = this.session.model;
    const fetched = order
      .filter((name) => image.masks.includes(name))
      .map(async (name) => [name, await decode(await blob(route(image, "masks", `${name}.png`)))]);
    const masks = await Promise.all(fetched);
    if (this.session.image?.id !== image.id) return;
    this.layers = new Map(masks.map(([name, mask]) => [name, new MaskLayer(mask, colors[name])]));
    this.#heat = new Map();
    this.#drawButtons(image);
    this.session.tell("layers", image);
    this.viewer.draw();
    if (this.#heatOn) await this.#showHeat();
  }

  /** Forget all layers. */
  clear() {
    this.layers.clear();
    this.#heat = new Map();
    by("toggles").replaceChildren();
    by("no-heat").hidden = true;
    this.#endWait();
  }

  /** Show or hide a mask, by its number from 1 or by its name. */
  toggle(which) {
    const name = typeof which === "number" ? [...this.layers.keys()][which - 1] : which;
    if (!name) return;
    if (!this.#on) this.toggleAll();
    else if (!this.#hidden.delete(name)) this.#hidden.add(name);
    this.#markButtons();
  }

  /** Make sure that a mask is seen. */
  reveal(name) {
    this.#hidden.delete(name);
    this.#on = true;
    this.#markButtons();
  }

  /** Show or hide what speaks for the chosen class. */
  toggleHeat() {
    if (by("heat").disabled) return;
    if (!this.#on) this.toggleAll();
    this.#heatOn = !this.#heatOn;
    this.#markButtons();
    if (this.#heatOn) this.#showHeat();
  }

  /** Show or hide everything. */
  toggleAll() {
    this.#on = !this.#on;
    this.#markButtons();
  }

  #drawButtons(image) {
    const names = [...this.layers.keys()];
    by("toggles").replaceChildren(
      ...names.map((name, at) => {
        const swatch = make("i", { class: "swatch" });
        swatch.style.background = `rgb(${this.layers.get(name).color.join(" ")})`;
        const button = make("button", { type: "button", "data-mask": name, onclick: () => this.toggle(name) }, swatch);
        button.append(title(name), " ", at < 9 ? make("kbd", { text: at + 1 }) : "");
        return button;
      }),
    );
    const classes = Object.keys(image.probabilities);
    const before = by("heat-class").value;
    const sure = image.label ?? classes.toSorted((a, b) => image.probabilities[b] - image.probabilities[a])[0];
    by("heat-class").replaceChildren(...classes.map((name) => make("option", { value: name, text: title(name) })));
    by("heat-class").value = classes.includes(before) && this.#heatOn ? before : sure;
    by("heat").disabled = by("heat-class").disabled = !classes.length;
    this.#markButtons();
  }

  #markButtons() {
    for (const button of by("toggles").children) press(button, this.#on && !this.#hidden.has(button.dataset.mask));
    press(by("heat"), this.#on && this.#heatOn);
    press(by("all"), this.#on);
    const name = by("heat-class").value;
    by("no-heat").hidden = !(this.#on && this.#heatOn && this.#heat.get(name)?.empty);
    by("no-heat").textContent = `The heat map of ${words(name)} is empty: nothing in the image speaks for it.`;
    this.viewer.draw();
  }

  async #showHeat() {
    const { image } = this.session;
    const name = by("heat-class").value;
    if (!image || !name || this.#heat.has(name)) return this.#markButtons();
    const asked = this.#heat;
    try {
      by("heat").setAttribute("aria-busy", "true");
      by("heat-wait").textContent = `The heat map of ${words(name)} is being computed …`;
      by("heat-wait").hidden = false;
      const layer = new HeatLayer(await decode(await blob(route(image, "heat", `${name}.png`))));
      if (this.session.image?.id !== image.id || asked !== this.#heat) return null;
      this.#heat.set(name, layer);
    } catch (error) {
      complain(error);
    } finally {
      if (this.session.image?.id !== image.id || by("heat-class").value === name) this.#endWait(); // else another one is on its way
    }
    return this.#markButtons();
  }

  #endWait() {
    by("heat").removeAttribute("aria-busy");
    by("heat-wait").hidden = true;
  }

  #draw(context, scale) {
    if (!this.#on) return;
    const opacity = by("opacity").value / 100;
    const heat = this.#heatOn && this.#heat.get(by("heat-class").value);
    if (heat) heat.draw(context, scale, opacity);
    for (const [name, layer] of this.layers) if (!this.#hidden.has(name)) layer.draw(context, scale, opacity, !heat);
  }
}
