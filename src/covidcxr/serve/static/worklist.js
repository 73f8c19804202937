/** The table of films: thumbnail, name with reasons, answer, probability; its heads sort it. */

import { blob, route } from "./api.js";
import { by, make, percent, track, words } from "./dom.js";

/** The answer in words, as the worklist and the panel say it. */
export function answerOf(film) {
  if (film.label) return words(film.label);
  return Object.keys(film.probabilities).length || film.reasons.length ? "cannot say" : "masks only";
}

/** The probability of the answer, else of the most probable class; -1 where there is none. */
const chanceOf = ({ label, probabilities }) =>
  label ? probabilities[label] : Math.max(-1, ...Object.values(probabilities));

const HEADS = {
  added: { words: "Added", of: (film) => film.uploaded, first: -1 },
  name: { words: "Film", of: (film) => film.name.toLowerCase(), first: 1 },
  answer: { words: "Answer", of: answerOf, first: 1 },
  probability: { words: "Prob.", of: chanceOf, first: -1 },
};

export class Worklist {
  #rows = new Map();
  #by = "added";
  #way = -1;
  #planned = false;
  #seen;

  /** `choose` is called with a film's id. */
  constructor(session, choose) {
    this.session = session;
    this.choose = choose;
    this.#drawHeads();
    const fetchSeen = (entries) =>
      entries.filter((entry) => entry.isIntersecting).forEach((entry) => this.#thumbnail(entry.target));
    this.#seen = new IntersectionObserver(fetchSeen, { rootMargin: "300px" });
    session.on("list", (film) =>
      film ? this.#update(film) : [...session.films.values()].forEach((each) => this.#update(each)),
    );
    session.on("select", () => this.#mark());
  }

  /** Choose the film below (1) or above (-1) the one that is looked at. */
  step(way) {
    const order = this.#order();
    const at = order.findIndex((film) => film.id === this.session.wanted);
    const next = order[at < 0 ? 0 : at + way];
    if (next) this.choose(next.id);
  }

  /** The film that takes a film's place when it goes, or null. */
  neighbour(id) {
    const order = this.#order();
    const at = order.findIndex((film) => film.id === id);
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
    return [...this.session.films.values()].sort(
      (a, b) => this.#way * compare(a, b) || (a.uploaded < b.uploaded ? 1 : -1),
    );
  }

  #update(film) {
    const old = this.#rows.get(film.id);
    const row = this.session.films.has(film.id) ? this.#draw(film, old) : null;
    if (row) this.#rows.set(film.id, row);
    else this.#rows.delete(film.id);
    if (old) row ? old.replaceWith(row) : old.remove();
    this.#arrange();
  }

  #draw(film, old) {
    const image = old?.querySelector("img") ?? make("img", { alt: "", width: 48, height: 48, "data-id": film.id });
    if (!image.src) this.#seen.observe(image);
    const why = film.reasons.map((reason) => reason.words).join(" ");
    const open = make("button", {
      type: "button",
      class: "open",
      text: film.name,
      title: film.name,
      "data-id": film.id,
    });
    const shown = chanceOf(film);
    const of = Object.keys(film.probabilities).find((name) => film.probabilities[name] === shown);
    const chosen = this.session.film?.id === film.id;
    if (chosen) open.setAttribute("aria-current", "true");
    return make(
      "tr",
      { class: chosen && "chosen", onclick: () => this.choose(film.id) },
      make("td", {}, image),
      make(
        "td",
        {},
        open,
        why && make("span", { class: "why dim", text: why, title: why }),
        film.verdict?.label && make("span", { class: "why sure", text: `Verdict: ${words(film.verdict.label)}` }),
        film.revised && make("span", { class: "why dim", text: "Mask corrected" }),
      ),
      make("td", { class: film.label ? "answer" : "answer doubt", text: answerOf(film) }),
      make(
        "td",
        { class: "probability" },
        shown < 0 ? "–" : percent(shown),
        shown >= 0 && track(shown),
        of && !film.label && make("span", { class: "why dim", text: words(of) }),
      ),
    );
  }

  #mark() {
    for (const [id, row] of this.#rows) {
      const chosen = id === this.session.film?.id;
      row.classList.toggle("chosen", chosen);
      const open = row.querySelector(".open");
      if (chosen) open.setAttribute("aria-current", "true");
      else open.removeAttribute("aria-current");
      if (chosen) row.scrollIntoView({ block: "nearest" });
    }
  }

  /** Put the rows in order, once for all films that came in this frame. */
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
      by("no-films").hidden = this.session.films.size > 0;
      by("count").textContent = this.session.films.size || "";
    });
  }

  async #thumbnail(image) {
    this.#seen.unobserve(image);
    try {
      image.src = URL.createObjectURL(await blob(route({ id: image.dataset.id }, "thumbnail.png")));
      image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    } catch {
      // The film may be gone by now; its row says all that matters without a picture.
    }
  }
}
