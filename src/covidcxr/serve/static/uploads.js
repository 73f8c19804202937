/** Images on their way to the server: dropped or chosen, three at a time; progress and failures are told for each. */

import { upload } from "./api.js";
import { by, complain, make, say } from "./dom.js";

const AT_ONCE = 3;
const PATIENCE = 20; // times that a busy server is asked again

export class Uploads {
  #waiting = [];
  #sending = 0;
  #done = 0;
  #failed = 0;

  constructor(session) {
    this.session = session;
    by("files").addEventListener("change", ({ target }) => {
      this.add([...target.files]);
      target.value = ""; // or the same image could not be chosen again
    });
    for (const id of ["add", "choose"]) by(id).addEventListener("click", () => by("files").click());
    this.#catchDrops(by("stage"));
  }

  /** Queue files. */
  add(files) {
    for (const file of files) this.#waiting.push([file, this.#entry(file)]);
    this.#pump();
  }

  #catchDrops(stage) {
    const mark = (on) => (event) => {
      event.preventDefault(); // anywhere on the page: an image that misses must not be opened in its stead
      stage.classList.toggle("over", on);
    };
    addEventListener("dragover", mark(true));
    addEventListener("dragleave", mark(false));
    addEventListener("drop", async (event) => {
      mark(false)(event);
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
      this.add(entries.length ? (await Promise.all(entries.map(filesOf))).flat() : [...event.dataTransfer.files]);
    });
  }

  #entry(file) {
    const state = make("span", { class: "state dim", text: "waiting" });
    const bar = make("progress", { max: 1, value: 0, "aria-label": `Progress of ${file.name}` });
    const entry = make("li", {}, make("span", { class: "name", text: file.name, title: file.name }), state, bar);
    by("uploads").append(entry);
    by("uploads").hidden = false;
    return { entry, state, bar };
  }

  #pump() {
    while (this.#sending < AT_ONCE && this.#waiting.length) {
      this.#sending += 1;
      this.#send(...this.#waiting.shift()).finally(() => {
        this.#sending -= 1;
        this.#pump();
      });
    }
    if (!this.#sending && this.#done + this.#failed) {
      say(`${this.#done} images predicted, ${this.#failed} failed.`);
      this.#done = this.#failed = 0;
    }
  }

  async #send(file, shown) {
    try {
      const most = this.session.limits?.file_bytes ?? Infinity;
      if (file.size > most)
        throw new Error(`${megabytes(file.size)} are more than the ${megabytes(most)} that this server takes.`);
      const image = await this.#patiently(file, shown);
      shown.entry.remove();
      this.#done += 1;
      this.session.put(image);
      if (!this.session.wanted) this.session.select(image.id).catch(complain);
    } catch (error) {
      this.#failed += 1;
      this.#fail(file, shown, error);
    }
    by("uploads").hidden = !by("uploads").childElementCount;
  }

  async #patiently(file, { state, bar }) {
    for (let turn = 1; ; turn += 1) {
      try {
        return await upload(file, (share) => {
          bar.value = share;
          state.textContent = share < 1 ? `${Math.round(100 * share)} %` : "being predicted";
        });
      } catch (error) {
        if (error.status !== 503 || turn === PATIENCE) throw error;
        state.textContent = "server is busy";
        await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfter));
      }
    }
  }

  #fail(file, { entry, state, bar }, error) {
    const close = make("button", { type: "button", text: "Dismiss", "aria-label": `Dismiss ${file.name}` });
    close.addEventListener("click", () => {
      entry.remove();
      by("uploads").hidden = !by("uploads").childElementCount;
    });
    state.replaceWith(close);
    bar.replaceWith(make("span", { class: "bad", text: error.message }));
  }
}

/** All files of a dropped entry; of a folder those in it, however deep. */
async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) return (await Promise.all(found.map(filesOf))).flat();
    found.push(...some);
  }
}

const megabytes = (bytes) => `${+(bytes / 1e6).toPrecision(3)} MB`;
