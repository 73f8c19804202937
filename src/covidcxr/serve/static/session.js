/**
 * What the page knows: the images of the worklist and the one that is looked at. Parts of the page listen to
 * `list` (an image came, changed or went; null = all), `select` (another image is looked at), `image` (what is known of
 * it changed) and `masks` (its masks are others now). What other browsers change comes in every few seconds.
 */

import { get, route, writes } from "./api.js";
import { by, complain, learn, pause } from "./dom.js";

const PERIOD = 2000; // milliseconds between two looks for changes

export class Session extends EventTarget {
  images = new Map();
  image = null;
  wanted = null; // id of the image that was chosen last; its answer may still be on its way
  model = null;
  limits = null;
  editing = () => false; // whether a mask of the image that is looked at was changed and not sent
  #revision = "";

  /** Ask the server what it runs and what it keeps, and follow what changes. */
  async load() {
    const health = await this.#health();
    this.model = health.model;
    this.limits = health.limits;
    this.version = health.version;
    learn(health.model.names);
    const { films: images, revision } = await get("/api/films");
    for (const { names } of images) learn(names);
    this.images = new Map(images.map((image) => [image.id, image]));
    this.#revision = revision;
    this.tell("list", null);
    this.#follow();
  }

  async #health() {
    for (;;) {
      try {
        return await get("/api/health");
      } catch (error) {
        if (error.status !== 503) throw error; // else the model is still being loaded
        by("model").textContent = error.message;
        await pause(1000 * error.retryAfter);
      }
    }
  }

  /** Take in what other browsers change, for as long as the page is open. */
  async #follow() {
    for (;;) {
      await pause(PERIOD);
      if (document.hidden || writes.running) continue;
      const { sent } = writes;
      try {
        const news = await get(`/api/films?since=${this.#revision}`);
        by("offline").hidden = true;
        if (sent === writes.sent) await this.#update(news); // else what came may be older than what was sent meanwhile
      } catch (error) {
        by("offline").hidden = false;
        by("offline").textContent = `${error.message} The worklist may be out of date.`;
      }
    }
  }

  async #update({ films: images, removed, complete, revision }) {
    for (const image of images) this.#takeIn(image);
    const kept = new Set(images.map(({ id }) => id));
    const gone = complete ? [...this.images.keys()].filter((id) => !kept.has(id)) : removed;
    for (const id of gone) {
      const image = this.images.get(id);
      if (!image) continue;
      this.drop(id);
      if (this.wanted !== id) continue;
      await this.select(null);
      complain(new Error(`${image.name} was removed in another browser, or to make room.`));
    }
    this.#revision = revision;
  }

  #takeIn(image) {
    const before = this.images.get(image.id);
    if (JSON.stringify(before) === JSON.stringify(image)) return;
    const masksOf = (one) => JSON.stringify([one?.areas, one?.corrected]);
    const redrawn = this.image?.id === image.id && masksOf(this.image) !== masksOf(image);
    const masks = redrawn && !this.editing();
    if (redrawn && !masks) complain(new Error("Another reader has corrected a mask of this image. Yours is not sent."));
    this.put(image, { masks });
  }

  /** Take in an image that is new or of which more is known. */
  put(image, { masks = false } = {}) {
    learn(image.names);
    this.images.set(image.id, image);
    this.tell("list", image);
    if (this.image?.id !== image.id) return;
    this.image = image;
    this.tell("image", image);
    if (masks) this.tell("masks", image);
  }

  /** Look at an image, or at none. */
  async select(id) {
    this.wanted = id;
    const image = id ? await this.#fetch(id) : null;
    if (this.wanted !== id) return;
    this.image = image;
    if (image) {
      learn(image.names);
      this.images.set(image.id, image);
    }
    history.replaceState(null, "", image ? `#film=${image.id}` : location.pathname);
    this.tell("select", image);
    if (image) this.tell("list", image);
  }

  async #fetch(id) {
    try {
      return await get(route({ id }));
    } catch (error) {
      if (this.wanted === id) this.wanted = this.image?.id ?? null;
      if (error.status === 404) this.drop(id); // removed from elsewhere
      throw error;
    }
  }

  /** Forget an image that the server removed. */
  drop(id) {
    const image = this.images.get(id);
    this.images.delete(id);
    this.tell("list", image);
  }

  tell(name, image) {
    this.dispatchEvent(new CustomEvent(name, { detail: image }));
  }

  /** Listen: `on("image", (image) => ...)`. */
  on(name, action) {
    this.addEventListener(name, (event) => action(event.detail));
  }
}
