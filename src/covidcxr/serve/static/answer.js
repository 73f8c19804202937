/** What the model says of the film that is looked at, and why it may not say it. */

import { by, make, percent, say, track, words } from "./dom.js";
import { answerOf } from "./worklist.js";

/** Keep the answer's part of the panel up to date. */
export function attachAnswer(session) {
  session.on("select", (film) => {
    by("of-film").hidden = !film;
    by("of-none").hidden = Boolean(film);
    if (film) draw(film, session.model);
  });
  session.on("film", (film) => draw(film, session.model));
}

function draw(film, model) {
  const answer = answerOf(film);
  by("answer").textContent = answer === "cannot say" ? "Cannot say" : answer;
  by("answer").className = film.label ? "big" : "big doubt";
  by("reasons").replaceChildren(...film.reasons.map((reason) => make("li", { text: reason.words })));
  by("notes").replaceChildren(...notesOf(film).map((text) => make("li", { text })));
  by("probabilities").replaceChildren(
    ...Object.entries(film.probabilities).map(([name, chance]) => chanceOf(film, name, chance)),
  );
  const asked = Object.keys(film.probabilities).length > 0;
  by("calibration").hidden = !asked;
  by("calibration").textContent = asked ? calibrationOf(model) : "";
  by("fractions").replaceChildren(...fractionsOf(film));
  const sure = film.label ? `, ${percent(film.probabilities[film.label])}` : "";
  say(`${film.name}: ${answer}${sure}. ${film.reasons.map((reason) => reason.words).join(" ")}`);
}

function notesOf(film) {
  const notes = [...film.notes];
  if (film.revised) notes.push("Answered from your corrected mask.");
  return [...notes, ...Object.entries(film.identifiers).map(([name, value]) => `${words(name)}: ${value}`)];
}

function chanceOf(film, name, chance) {
  const threshold = film.thresholds[name];
  const plausible = film.plausible.includes(name);
  return make(
    "div",
    { class: plausible ? "chance" : "chance no", "data-class": name },
    make("span", { text: words(name) }),
    track(chance, threshold, `plausible from ${percent(threshold, 1)}`),
    make("span", { class: "value", text: percent(chance, 1) }),
  );
}

function calibrationOf({ temperature, thresholds }) {
  const scaled =
    temperature !== 1
      ? `Calibrated on the model's own data (temperature ${temperature.toFixed(2)}); elsewhere it can be wrong and sure.`
      : "Not calibrated.";
  return Object.keys(thresholds).length ? `${scaled} A class is plausible from its mark on.` : scaled;
}

function fractionsOf(film) {
  const { right, left } = film.infected_by_lung;
  const facts = [["Lungs, of the film", film.lung_fraction]];
  if (film.masks.includes("infection")) {
    facts.push(
      ["Infected, of the lungs", film.infected_fraction],
      ["Infected, of the right lung", right],
      ["Infected, of the left lung", left],
    );
  } else facts.push(["Infected, of the lungs", "this model draws none"]);
  return facts.flatMap(([name, value]) => [
    make("dt", { text: name }),
    make("dd", { text: typeof value === "string" ? value : percent(value, 1) }),
  ]);
}
