/** The pre-test probability that the reader gives, and what Bayes' rule makes of it. The server does the sum. */

import { put, route } from "./api.js";
import { by, complain, make, percent, title, words } from "./dom.js";

const PAUSE = 200; // milliseconds after the last move before it is sent

export class Prior {
  #classes = [];
  #shares = {};
  #timer = 0;

  constructor(session) {
    this.session = session;
    by("no-prior").addEventListener("click", () => this.#send(null));
    session.on("select", (image) => this.#open(image));
    session.on("image", (image) =>
      String(this.#classesOf(image)) === String(this.#classes) ? this.#tell(image) : this.#open(image),
    );
  }

  #open(image) {
    this.#flush();
    this.#classes = image ? this.#classesOf(image) : [];
    const asked = this.#classes.length > 0;
    const top = make(
      "div",
      { class: "weigh top" },
      make("span"),
      make("span", { text: "pre-test" }),
      make("span", { text: "percent" }),
      make("span", { class: "value", text: "post-test" }),
    );
    by("prior").replaceChildren(top, ...this.#classes.map((name) => this.#row(name)));
    by("formula").hidden = !asked;
    if (image) this.#tell(image);
    if (image && !asked) {
      by("prior").textContent = this.session.model.training_prior
        ? "There is no probability to start from."
        : "It needs classes of which exactly one is true.";
    }
  }

  /** What can be weighed: classes of which exactly one is true, and of which the model said something. */
  #classesOf(image) {
    return this.session.model.training_prior ? Object.keys(image.probabilities) : [];
  }

  #row(name) {
    const label = `Pre-test probability of ${words(name)}, percent`;
    const changed = ({ target }) => this.#set(name, target.value / 100, target);
    return make(
      "div",
      { class: "weigh", "data-class": name },
      make("span", { text: title(name) }),
      make("input", { type: "range", min: 0, max: 100, step: 0.5, "aria-label": label, oninput: changed }),
      make("input", {
        type: "number",
        min: 0,
        max: 100,
        step: "any",
        "aria-label": `${label}, as a number`,
        oninput: changed,
      }),
      make("span", { class: "value", title: "post-test" }),
    );
  }

  /** Set one class; the others keep their proportions and share what is left. */
  #set(name, share, source) {
    if (!(share >= 0 && share <= 1)) return;
    const others = this.#classes.filter((other) => other !== name);
    const sum = others.reduce((total, other) => total + this.#shares[other], 0);
    for (const other of others) {
      this.#shares[other] = (1 - share) * (sum > 0 ? this.#shares[other] / sum : 1 / others.length);
    }
    this.#shares[name] = share;
    this.#fill(source);
    clearTimeout(this.#timer);
    this.#pending = { image: this.session.image, shares: { ...this.#shares } };
    this.#timer = setTimeout(() => this.#flush(), PAUSE);
  }

  #pending = null;

  #flush() {
    clearTimeout(this.#timer);
    const pending = this.#pending;
    this.#pending = null;
    if (pending) this.#send(pending.shares, pending.image);
  }

  async #send(shares, image = this.session.image) {
    try {
      this.session.put(await put(route(image, "prior"), { probabilities: shares }));
    } catch (error) {
      complain(error);
    }
  }

  #fill(source) {
    for (const row of by("prior").querySelectorAll("[data-class]")) {
      for (const input of row.querySelectorAll("input")) {
        if (input !== source) input.value = +(100 * this.#shares[row.dataset.class]).toFixed(1);
      }
    }
  }

  #tell(image) {
    const classes = this.#classes;
    const trained = this.session.model.training_prior;
    if (!this.#pending) {
      this.#shares = Object.fromEntries(classes.map((name) => [name, image.prior?.[name] ?? trained[name]]));
      this.#fill(document.activeElement);
    }
    by("no-prior").disabled = !image.prior;
    for (const row of by("prior").querySelectorAll("[data-class]")) {
      const value = row.querySelector(".value");
      value.textContent = image.posterior ? percent(image.posterior[row.dataset.class], 1) : "–";
      value.classList.toggle("dim", !image.posterior);
    }
    by("worked").replaceChildren(
      ...(image.posterior ? classes.map((name) => this.#work(image, name, trained[name])) : []),
    );
  }

  #work(image, name, trained) {
    const [chance, prior] = [image.probabilities[name], image.prior[name]];
    const product = (chance * prior) / trained;
    return make(
      "li",
      {},
      make("span", { text: title(name) }),
      make("span", { text: `${[chance, prior].map(brief).join(" · ")} / ${brief(trained)} = ${brief(product)}` }),
      make("span", { text: `→ ${percent(image.posterior[name], 1)}` }),
    );
  }
}

const brief = (share) => share.toPrecision(2);
