/**
 * What the reader says of the image. What was typed and not saved waits until its image is looked at again. If another
 * reader saves a verdict meanwhile, the server refuses ours, and the two are shown side by side.
 */

import { get, put, route } from "./api.js";
import { by, make, title, told } from "./dom.js";

const INDETERMINATE = "cannot say"; // as the server keeps it
const NONE = { label: null, comment: "", consent: false };

export class Verdict {
  #drafts = new Map(); // by image id; `replaces` = when the verdict was saved that the reader saw, null for none
  #shown = null; // when the verdict was saved that the form shows

  constructor(session) {
    this.session = session;
    by("verdict").addEventListener("submit", (event) => {
      event.preventDefault();
      this.save();
    });
    by("verdict").addEventListener("input", () => this.#draft());
    by("mine").addEventListener("click", () => {
      this.#drafts.get(session.image.id).replaces = savedOf(session.image);
      this.save();
    });
    by("theirs").addEventListener("click", () => {
      this.#drafts.delete(session.image.id);
      this.#open(session.image);
    });
    session.on("select", (image) => image && this.#open(image));
    session.on("image", (image) => this.#refresh(image));
    session.on("list", (image) => image && !session.images.has(image.id) && this.#drafts.delete(image.id));
  }

  /** Whether something was typed that the server does not know. */
  get unsaved() {
    return this.#drafts.size > 0;
  }

  /** Send the verdict; it is said to be saved when the server has it on its disk. */
  save = told(async () => {
    const { image } = this.session;
    this.#draft();
    const given = this.#drafts.get(image.id);
    by("saved").textContent = "Saving …";
    try {
      const kept = await put(route(image, "verdict"), given);
      const now = this.#drafts.get(image.id);
      if (now === given) this.#drafts.delete(image.id);
      else if (now) now.replaces = savedOf(kept); // more was typed meanwhile
      if (this.session.image?.id === image.id) this.#shown = savedOf(kept);
      this.session.put(kept);
    } catch (error) {
      if (error.status !== 409) throw error;
      this.session.put(await get(route(image))); // the conflict shows
    } finally {
      this.#tell();
    }
  });

  #open(image) {
    const choices = [...image.classes, INDETERMINATE].map((value) => [value, title(value)]);
    by("labels").replaceChildren(
      ...[...choices, ["", "Not given"]].map(([value, text]) =>
        make(
          "label",
          { class: "chip" },
          make("input", { type: "radio", name: "label", value }),
          make("span", { text }),
        ),
      ),
    );
    const { label, comment, consent } = this.#drafts.get(image.id) ?? image.verdict ?? NONE;
    for (const choice of by("labels").querySelectorAll("input")) choice.checked = choice.value === (label ?? "");
    by("comment").value = comment;
    by("consent").checked = consent;
    this.#shown = savedOf(image);
    by("other").hidden = true;
    this.#tell();
  }

  /** Show a verdict that another reader has saved. */
  #refresh(image) {
    if (savedOf(image) !== this.#shown && !this.#drafts.has(image.id)) {
      this.#open(image);
      by("other").textContent = `Another reader has saved this verdict: ${inWords(image.verdict)}.`;
      by("other").hidden = false;
    } else this.#tell();
  }

  #draft() {
    const { image } = this.session;
    const label = new FormData(by("verdict")).get("label") || null;
    const before = this.#drafts.get(image.id);
    const replaces = before ? before.replaces : savedOf(image);
    const said = { label, comment: by("comment").value, consent: by("consent").checked };
    this.#drafts.set(image.id, { ...said, replaces });
    this.#tell();
  }

  #tell() {
    const { image } = this.session;
    const draft = this.#drafts.get(image?.id);
    const saved = image?.verdict ? `Saved ${new Date(image.verdict.saved).toLocaleString()}` : "";
    by("saved").textContent = draft ? "Not saved yet" : saved;
    const conflict = draft && draft.replaces !== savedOf(image);
    by("conflict").hidden = !conflict;
    if (conflict) by("conflict-words").textContent = `Another reader has saved: ${inWords(image.verdict)}. Yours is not saved.`;
  }
}

const savedOf = (image) => image.verdict?.saved ?? null;

function inWords({ label, comment, saved }) {
  const said = label ? title(label) : "no class";
  return `${said}${comment ? `, “${comment}”` : ""}, ${new Date(saved).toLocaleTimeString()}`;
}
