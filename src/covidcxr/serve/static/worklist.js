/** The table of images: thumbnail, name with reasons, prediction, probability; its heads sort it. */

import { blob, route } from "./api.js";
import { by, make, percent, title, track, words } from "./dom.js";

/** The prediction in words, as the worklist and the panel say it. */
export function answerOf(image) {
  if (image.label) return words(image.label);
  return Object.keys(image.probabilities).length || image.reasons.length ? "indeterminate" : "masks only";
}

/** The probability of the answer, else of the most probable class; -1 where there is none. */
const chanceOf = ({ label, probabilities }) =>
  label ? probabilities[label] : Math.max(-1, ...Object.values(probabilities));

const HEADS = {
  added: { words: "Added", of: (image) => image.uploaded, first: -1 },
  name: { words: "Image", of: (image) => image.name.toLowerCase(), first: 1 },
  answer: { words: "Prediction", of: answerOf, first: 1 },
  probability: { words: "Prob.", of: chanceOf, first: -1 },
};

export class Worklist {
  #rows = new Map();
  #by = "added";
  #way = -1;
  #planned = false;
  #seen;

  /** `choose` is called with an image's id. */
  constructor(session, choose) {
    this.session = session;
    this.choose = choose;
    this.#drawHeads();
    const fetchSeen = (entries) =>
      entries.filter((entry) => entry.isIntersecting).forEach((entry) => this.#thumbnail(entry.target));
    this.#seen = new IntersectionObserver(fetchSeen, { rootMargin: "300px" });
    session.on("list", (image) =>
      image ? this.#update(image) : [...session.images.values()].forEach((each) => this.#update(each)),
    );
    session.on("select", () => this.#mark());
  }

  /** Choose the image below (1) or above (-1) the one that is looked at. */
  step(way) {
    const order = this.#order();
    const at = order.findIndex((image) => image.id === this.session.wanted);
    const next = order[at < 0 ? 0 : at + way];
    if (next) this.choose(next.id);
  }

  /** The image that takes an image's place when it goes, or null. */
  neighbour(id) {
    const order = this.#order();
    const at = order.findIndex((image) => image.id === id);
    return (order[at + 1] ?? order[at - 1])?.id ?? null;
  }

  #drawHeads() {
    for (const [name, head] of Object.entries(HEADS)) {
      const button = make("button", { type: "button", text: head.words, onclick: () => this.#sort(name) });
      by("heads").append(make("th", { scope: "col", class: name, id: `head-${name}` }, button));
    }
    this.#markHeads();
  }

  #sort(name) {
    this.#way = this.#by === name ? -this.#way : HEADS[name].first;
    this.#by = name;
    this.#markHeads();
    this.#arrange();
  }

  #markHeads() {
    for (const name of Object.keys(HEADS)) {
      const way = this.#way > 0 ? "ascending" : "descending";
      by(`head-${name}`).setAttribute("aria-sort", name === this.#by ? way : "none");
    }
  }

  #order() {
    const { of } = HEADS[this.#by];
    const compare = (a, b) => (of(a) < of(b) ? -1 : of(a) > of(b) ? 1 : 0);
    return [...this.session.images.values()].sort(
      (a, b) => this.#way * compare(a, b) || (a.uploaded < b.uploaded ? 1 : -1),
    );
  }

  #update(image) {
    const old = this.#rows.get(image.id);
    const row = this.session.images.has(image.id) ? this.#draw(image, old) : null;
    if (row) this.#rows.set(image.id, row);
    else this.#rows.delete(image.id);
    if (old) row ? old.replaceWith(row) : old.remove();
    this.#arrange();
  }

  #draw(image, old) {
    const thumbnail = old?.querySelector("img") ?? make("img", { alt: "", width: 48, height: 48, "data-id": image.id });
    if (!thumbnail.src) this.#seen.observe(thumbnail);
    const why = image.reasons.map((reason) => reason.words).join(" ");
    const open = make("button", {
      type: "button",
      class: "open",
      text: image.name,
      title: image.name,
      "data-id": image.id,
    });
    const shown = chanceOf(image);
    const of = Object.keys(image.probabilities).find((name) => image.probabilities[name] === shown);
    const chosen = this.session.image?.id === image.id;
    if (chosen) open.setAttribute("aria-current", "true");
    return make(
      "tr",
      { class: chosen && "chosen", onclick: () => this.choose(image.id) },
      make("td", {}, thumbnail),
      make(
        "td",
        {},
        open,
        why && make("span", { class: "why dim", text: why, title: why }),
        image.verdict?.label && make("span", { class: "why sure", text: `Verdict: ${words(image.verdict.label)}` }),
        image.revised && make("span", { class: "why dim", text: "Mask corrected" }),
      ),
      make("td", { class: image.label ? "answer" : "answer doubt", text: title(answerOf(image)) }),
      make(
        "td",
        { class: "probability" },
        shown < 0 ? "–" : percent(shown),
        shown >= 0 && track(shown),
        of && !image.label && make("span", { class: "why dim", text: words(of) }),
      ),
    );
  }

  #mark() {
    for (const [id, row] of this.#rows) {
      const chosen = id === this.session.image?.id;
      row.classList.toggle("chosen", chosen);
      const open = row.querySelector(".open");
      if (chosen) open.setAttribute("aria-current", "true");
      else open.removeAttribute("aria-current");
      if (chosen) row.scrollIntoView({ block: "nearest" });
    }
  }

  /** Put the rows in order, once for all images that came in this frame. */
  #arrange() {
    if (this.#planned) return;
    this.#planned = true;
    requestAnimationFrame(() => {
      this.#planned = false;
      const focused = document.activeElement?.dataset?.id;
      let next = by("rows").firstChild;
      for (const { id } of this.#order()) {
        const row = this.#rows.get(id);
        if (row === next) next = next.nextSibling;
        else by("rows").insertBefore(row, next); // only what is not in its place: there may be thousands
      }
      if (focused) this.#rows.get(focused)?.querySelector(".open").focus();
      by("no-films").hidden = this.session.images.size > 0;
      by("count").textContent = this.session.images.size || "";
    });
  }

  async #thumbnail(element) {
    this.#seen.unobserve(element);
    try {
      element.src = URL.createObjectURL(await blob(route({ id: element.dataset.id }, "thumbnail.png")));
      element.addEventListener("load", () => URL.revokeObjectURL(element.src), { once: true });
    } catch {
      // The image may be gone by now; its row says all that matters without a picture.
    }
  }
}
