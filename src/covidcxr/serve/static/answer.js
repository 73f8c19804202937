/** The model's prediction for the image that is looked at, and why there may be none. */

import { by, make, percent, say, title, track, words } from "./dom.js";
import { answerOf } from "./worklist.js";

/** Keep its part of the panel up to date. */
export function attachAnswer(session) {
  session.on("select", (image) => {
    by("of-film").hidden = !image;
    by("of-none").hidden = Boolean(image);
    if (image) draw(image, session.model);
  });
  session.on("image", (image) => draw(image, session.model));
}

function draw(image, model) {
  const answer = answerOf(image);
  by("answer").textContent = title(answer);
  by("answer").className = image.label ? "big" : "big doubt";
  by("reasons").replaceChildren(...image.reasons.map((reason) => make("li", { text: reason.words })));
  by("notes").replaceChildren(...notesOf(image).map((text) => make("li", { text })));
  by("probabilities").replaceChildren(
    ...Object.entries(image.probabilities).map(([name, chance]) => chanceOf(image, name, chance)),
  );
  const asked = Object.keys(image.probabilities).length > 0;
  by("calibration").hidden = !asked;
  by("calibration").textContent = asked ? calibrationOf(model) : "";
  by("fractions").replaceChildren(...areasOf(image, model.mask_colors));
  const sure = image.label ? `, ${percent(image.probabilities[image.label])}` : "";
  say(`${image.name}: ${answer}${sure}. ${image.reasons.map((reason) => reason.words).join(" ")}`);
}

function notesOf(image) {
  const notes = [...image.notes];
  if (image.revised) notes.push("Predicted from the corrected mask.");
  return [...notes, ...Object.entries(image.identifiers).map(([name, value]) => `${name}: ${value}`)];
}

function chanceOf(image, name, chance) {
  const threshold = image.thresholds[name];
  const plausible = image.plausible.includes(name);
  return make(
    "div",
    { class: plausible ? "chance" : "chance no", "data-class": name },
    make("span", { text: title(name) }),
    track(chance, threshold, `plausible from ${percent(threshold, 1)}`),
    make("span", { class: "value", text: percent(chance, 1) }),
  );
}

const OF = { class: "of each class", source: "of each class and source", all: "of all classes together" };

function calibrationOf({ temperature, thresholds, coverage, coverage_by: by }) {
  const scaled =
    temperature !== 1
      ? `Calibrated on the model's own data (temperature ${temperature.toFixed(2)}); elsewhere it can be wrong and sure.`
      : "Not calibrated.";
  if (!Object.keys(thresholds).length) return scaled;
  const promise = `, so that the plausible ones hold the truth of ${percent(coverage)} of images ${OF[by]}, if they are like those of validation`;
  return `${scaled} A class is plausible from its mark on${coverage ? promise : ""}.`;
}

/** A line for each mask: of lungs their share of the image, of findings theirs of the lungs. */
function areasOf(image, colors) {
  return Object.entries(image.areas).flatMap(([name, { image: ofImage, lungs, right, left }]) => {
    const swatch = make("i", { class: "swatch" });
    swatch.style.background = `rgb(${colors[name].join(" ")})`;
    const known = lungs !== null;
    const sides = right === null ? null : `right ${percent(right, 1)}, left ${percent(left, 1)}`;
    const ends = name === "infection" ? image.infected_interval : null;
    return [
      make("dt", {}, swatch, ` ${title(name)}, of the ${known ? "lungs" : "image"}`),
      make("dd", { text: percent(known ? lungs : ofImage, 1) }),
      ends && make("dd", { class: "sides dim small", text: `readers: ${ends.map((end) => percent(end)).join(" to ")}` }),
      sides && make("dd", { class: "sides dim small", text: sides }),
    ].filter(Boolean);
  });
}
