/**
 * What the page knows: the films of the worklist and the one that is looked at. Parts of the page listen to
 * `list` (a film came, changed or went; null = all), `select` (another film is looked at), `film` (what is known of it
 * changed) and `masks` (its masks are others now).
 */

import { get, route } from "./api.js";

export class Session extends EventTarget {
  films = new Map();
  film = null;
  wanted = null; // id of the film that was chosen last; its answer may still be on its way
  model = null;
  limits = null;

  /** Ask the server what it runs and what it keeps. */
  async load() {
    const health = await this.#health();
    this.model = health.model;
    this.limits = health.limits;
    this.version = health.version;
    const { films } = await get("/api/films");
    this.films = new Map(films.map((film) => [film.id, film]));
    this.tell("list", null);
  }

  async #health() {
    for (;;) {
      try {
        return await get("/api/health");
      } catch (error) {
        if (error.status !== 503) throw error; // else the model is still being loaded
        await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
      }
    }
  }

  /** Take in a film that is new or of which more is known. */
  put(film, { masks = false } = {}) {
    this.films.set(film.id, film);
    this.tell("list", film);
    if (this.film?.id !== film.id) return;
    this.film = film;
    this.tell("film", film);
    if (masks) this.tell("masks", film);
  }

  /** Look at a film, or at none. */
  async select(id) {
    this.wanted = id;
    const film = id ? await this.#fetch(id) : null;
    if (this.wanted !== id) return;
    this.film = film;
    if (film) this.films.set(film.id, film);
    history.replaceState(null, "", film ? `#film=${film.id}` : location.pathname);
    this.tell("select", film);
    if (film) this.tell("list", film);
  }

  async #fetch(id) {
    try {
      return await get(route({ id }));
    } catch (error) {
      if (this.wanted === id) this.wanted = this.film?.id ?? null;
      if (error.status === 404) this.drop(id); // removed from elsewhere
      throw error;
    }
  }

  /** Forget a film that the server removed. */
  drop(id) {
    const film = this.films.get(id);
    this.films.delete(id);
    this.tell("list", film);
  }

  tell(name, film) {
    this.dispatchEvent(new CustomEvent(name, { detail: film }));
  }

  /** Listen: `on("film", (film) => ...)`. */
  on(name, action) {
    this.addEventListener(name, (event) => action(event.detail));
  }
}
