/** The page: an image in, its outlines and the prediction shown. */

import { loadPipeline } from "./pipeline.js";
import { inWords } from "./words.js";

const LONGEST = 1024; // pixels; the networks see 256
const COLORS = { lung_field: "#00c8ff", lung: "#7878ff", infection: "#ff5a3c" };
const OTHERS = ["#ffdc00", "#50dc50", "#ff78dc", "#a0ffc8", "#ffaa3c", "#beff3c"];
const by = (id) => document.getElementById(id);
const title = (name) => name.replaceAll("_", " ").replace("covid19", "COVID-19");
const percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;

let pipeline = null;
let shown = null; // the picture and its prediction

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Read a file as grey in [0, 1]: luma (ITU-R 601) in 8 bits, transparent is black, turned as EXIF says. */
async function readImage(file) {
  const picture = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const scale = Math.min(1, LONGEST / Math.max(picture.width, picture.height));
  const [width, height] = [picture.width, picture.height].map((side) => Math.max(1, Math.round(side * scale)));
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const grey = new Float32Array(width * height);
  for (let place = 0; place < grey.length; place += 1) {
    const [red, green, blue] = data.subarray(4 * place, 4 * place + 3);
    grey[place] = ((red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16) / 255;
  }
  return { width, height, grey };
}

function colorsOf(masks) {
  const free = [...OTHERS];
  return Object.fromEntries(Object.keys(masks).map((name) => [name, COLORS[name] ?? free.shift() ?? "#ffffff"]));
}

/** Draw the image, findings as tint, and all masks as outlines. */
function draw() {
  const { image, prediction } = shown;
  const { width, height, grey } = image;
  const pixels = new ImageData(width, height);
  grey.forEach((value, place) => pixels.data.set([value * 255, value * 255, value * 255, 255], 4 * place));
  const colors = colorsOf(prediction.masks);
  for (const [name, mask] of Object.entries(by("outlines").checked ? prediction.masks : {})) {
    const rgb = [1, 3, 5].map((at) => parseInt(colors[name].slice(at, at + 2), 16));
    const reach = Math.max(1, Math.round(Math.max(width, height) / 400));
    mask.pixels.forEach((set, place) => {
      if (!set) return;
      const [x, y] = [place % width, Math.floor(place / width)];
      const inside = (along, down) =>
        x + along >= 0 && x + along < width && y + down >= 0 && y + down < height && mask.pixels[place + down * width + along];
      const edge = !inside(reach, 0) || !inside(-reach, 0) || !inside(0, reach) || !inside(0, -reach);
      const weight = edge ? 1 : name.startsWith("lung") ? 0 : 0.3;
      rgb.forEach((value, channel) => {
        const at = 4 * place + channel;
        pixels.data[at] = pixels.data[at] * (1 - weight) + value * weight;
      });
    });
  }
  const canvas = by("canvas");
  Object.assign(canvas, { width, height, hidden: false });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  by("drop").hidden = true;
  by("legend").replaceChildren(
    ...Object.entries(colors).map(([name, color]) => {
      const item = make("li", title(name));
      const swatch = make("span", "", { class: "swatch" });
      swatch.style.background = color;
      item.prepend(swatch);
      return item;
    }),
  );
}

function bar(value, threshold) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  const add = (tag, attributes) => {
    const part = document.createElementNS(space, tag);
    for (const [name, given] of Object.entries(attributes)) part.setAttribute(name, given);
    picture.append(part);
  };
  for (const [name, given] of Object.entries({ class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" })) {
    picture.setAttribute(name, given);
  }
  add("rect", { class: "track", width: 100, height: 10, rx: 2 });
  add("rect", { class: "value", width: 100 * value, height: 10, rx: 2 });
  if (threshold !== undefined) add("line", { class: "mark", x1: 100 * threshold, x2: 100 * threshold, y1: 0, y2: 10 });
  return picture;
}

function tell() {
  const { prediction } = shown;
  by("label").textContent = prediction.label ? title(prediction.label) : "Cannot say";
  by("label").classList.toggle("doubt", !prediction.label);
  by("reasons").replaceChildren(
    ...prediction.reasons.map((reason) => make("li", inWords(reason))),
    ...prediction.notes.map((note) => make("li", inWords(note), { class: "note" })),
  );
  const thresholds = pipeline.about.models.classifier?.thresholds ?? {};
  by("probabilities").hidden = !Object.keys(prediction.probabilities).length;
  by("probabilities").tBodies[0].replaceChildren(
    ...Object.entries(prediction.probabilities).map(([name, value]) => {
      const row = document.createElement("tr");
      const cell = document.createElement("td");
      cell.append(bar(value, thresholds[name]));
      row.append(make("th", title(name), { scope: "row" }), cell, make("td", percent(value), { class: "number" }));
      return row;
    }),
  );
  const areas = prediction.lungFraction == null ? [] : [["Lungs, of the image", percent(prediction.lungFraction)]];
  for (const [name, share] of Object.entries(prediction.findingFractions ?? {})) {
    areas.push([`${title(name)[0].toUpperCase()}${title(name).slice(1)}, of the lungs`, percent(share)]);
  }
  if (prediction.infectedInterval) areas.push(["As readers outline it", prediction.infectedInterval.map(percent).join(" to ")]);
  by("areas").hidden = !areas.length;
  by("areas").replaceChildren(...areas.flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
  by("result").hidden = false;
}

async function answer(file) {
  by("status").textContent = `Computing ${file.name} …`;
  by("result").hidden = true;
  await new Promise((resolve) => setTimeout(resolve)); // so that the line above is seen
  try {
    const started = performance.now();
    const image = await readImage(file);
    shown = { image, prediction: await pipeline.predict(image) };
    draw();
    tell();
    by("status").textContent = `${file.name}: ${Math.max(0.1, (performance.now() - started) / 1000).toFixed(1)} s in this browser`;
  } catch (error) {
    by("status").textContent = `${file.name} cannot be answered: ${error.message || error}`;
  }
}

by("file").addEventListener("change", () => by("file").files[0] && answer(by("file").files[0]));
by("outlines").addEventListener("change", () => shown && draw());
for (const [event, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  by("stage").addEventListener(event, (given) => {
    given.preventDefault();
    by("stage").classList.toggle("over", over);
    if (event === "drop" && pipeline && given.dataTransfer.files[0]) answer(given.dataTransfer.files[0]);
  });
}

try {
  pipeline = await loadPipeline("model", (words) => (by("status").textContent = words));
  by("status").textContent = "Ready. Choose an image.";
  by("file").disabled = false;
} catch (error) {
  by("status").textContent = error.message || String(error);
}
