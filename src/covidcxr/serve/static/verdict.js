/** What the reader says of the film. What was typed and not saved waits until its film is looked at again. */

import { put, route } from "./api.js";
import { by, make, told, words } from "./dom.js";

const CANNOT_SAY = "cannot say";

export class Verdict {
  #drafts = new Map(); // by film id

  constructor(session) {
    this.session = session;
    by("verdict").addEventListener("submit", (event) => {
      event.preventDefault();
      this.save();
    });
    by("verdict").addEventListener("input", () => this.#draft());
    session.on("select", (film) => film && this.#open(film));
    session.on("list", (film) => film && !session.films.has(film.id) && this.#drafts.delete(film.id));
  }

  /** Whether something was typed that the server does not know. */
  get unsaved() {
    return this.#drafts.size > 0;
  }

  /** Send the verdict; it is said to be saved when the server has it on its disk. */
  save = told(async () => {
    const { film } = this.session;
    const given = this.#read();
    by("saved").textContent = "Saving …";
    try {
      const kept = await put(route(film, "verdict"), given);
      if (JSON.stringify(this.#drafts.get(film.id) ?? given) === JSON.stringify(given)) this.#drafts.delete(film.id);
      this.session.put(kept);
    } finally {
      this.#tell();
    }
  });

  #open(film) {
    const choices = [...film.classes, CANNOT_SAY].map((value) => [value, words(value)]);
    by("labels").replaceChildren(
      ...[...choices, ["", "none"]].map(([value, text]) =>
        make(
          "label",
          { class: "chip" },
          make("input", { type: "radio", name: "label", value }),
          make("span", { text }),
        ),
      ),
    );
    const { label, comment, consent } = this.#drafts.get(film.id) ??
      film.verdict ?? { label: null, comment: "", consent: false };
    for (const choice of by("labels").querySelectorAll("input")) choice.checked = choice.value === (label ?? "");
    by("comment").value = comment;
    by("consent").checked = consent;
    this.#tell();
  }

  #read() {
    const label = new FormData(by("verdict")).get("label") || null;
    return { label, comment: by("comment").value, consent: by("consent").checked };
  }

  #draft() {
    this.#drafts.set(this.session.film.id, this.#read());
    this.#tell();
  }

  #tell() {
    const { film } = this.session;
    const saved = film?.verdict ? `Saved ${new Date(film.verdict.saved).toLocaleString()}` : "";
    by("saved").textContent = this.#drafts.has(film?.id) ? "Not saved yet" : saved;
  }
}
