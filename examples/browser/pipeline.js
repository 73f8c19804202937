/** A pipeline that `covidcxr export` wrote, by onnxruntime-web: what `Pipeline` does between the models, in a browser. */

import * as ort from "./package/dist/ort.wasm.min.mjs";
import { cleanMask, findLungs } from "./masks.js";

ort.env.wasm.wasmPaths = new URL("./package/dist/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more would need headers that a plain file server does not send

const PARTS = ["gate", "lung_segmenter", "infection_segmenter", "classifier"];
const LUNG_CLASSES = ["lung_field", "lung"];
const REJECTED = ["not-a-frontal-film", "child"];
const LEAST_AREA = 0.02; // of the image: less is no lungs at all

/** Load `export.json` and the files that it names, and check that they are those that were exported. */
export async function loadPipeline(folder, report = () => {}) {
  const response = await fetch(`${folder}/export.json`);
  if (!response.ok) throw new Error(`There is no model in "${folder}". Write one: covidcxr export mini --out ${folder}`);
  const about = await response.json();
  if (about.format !== "onnx") throw new Error(`"${folder}" holds files of the format ${about.format}, not onnx.`);
  const models = {};
  for (const part of PARTS.filter((name) => about.models[name])) {
    const facts = about.models[part];
    report(`Loading ${facts.file} …`);
    const content = await (await fetch(`${folder}/${facts.file}`)).arrayBuffer();
    const digest = await crypto.subtle.digest("SHA-256", content);
    const sha256 = [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    if (sha256 !== facts.sha256) throw new Error(`${facts.file} is not the file that was exported: export it anew.`);
    models[part] = { facts, session: await ort.InferenceSession.create(content) };
  }
  return new Pipeline(about, models);
}

class Pipeline {
  constructor(about, models) {
    this.about = about;
    this.models = models;
  }

  /** Answer a grey image: `{ width, height, grey }`, grey as Float32Array in [0, 1]. */
  async predict(image) {
    const answer = { label: null, probabilities: {}, reasons: [], notes: [], masks: {}, infectedInterval: null };
    const view = await this.#checkView(image);
    if (view.reasons.length) return { ...answer, reasons: view.reasons };
    const upright = correct(image, view.orientation);
    answer.notes = faults(view.orientation).map((fault) => `${fault}-corrected`);
    const masks = await this.#segment(upright, answer);
    if (this.models.classifier) await this.#classify(upright, masks, answer);
    if (answer.reasons.length) answer.label = null;
    measure(answer, masks, this.about.infected_interval);
    for (const [name, mask] of Object.entries(masks)) answer.masks[name] = turn(mask, -view.orientation.turns);
    return answer;
  }

  async #run(part, image, lungs) {
    const shape = [1, 1, image.height, image.width];
    const feeds = { image: new ort.Tensor("float32", image.grey, shape) };
    if (lungs) feeds.lungs = new ort.Tensor("float32", Float32Array.from(lungs.pixels), shape);
    return (await this.models[part].session.run(feeds, ["probabilities"])).probabilities;
  }

  async #byClass(part, image, lungs) {
    const { data } = await this.#run(part, image, lungs);
    return Object.fromEntries(this.models[part].facts.classes.map((name, place) => [name, data[place]]));
  }

  /** Is this a frontal chest radiograph, and how does it lie? An image that is turned is seen again, corrected. */
  async #checkView(image) {
    const upright = { turns: 0, inverted: false };
    if (!this.models.gate) return { orientation: upright, reasons: [] };
    const counts = (name, found) => found[name] >= (this.models.gate.facts.thresholds[name] ?? 0.5);
    const before = await this.#byClass("gate", image);
    if (!finite(before)) return { orientation: upright, reasons: ["gate-not-finite"] };
    const best = mostProbable(before);
    if (best === "frontal" || counts("frontal", before)) return { orientation: upright, reasons: [] };
    if (REJECTED.includes(best)) return { orientation: upright, reasons: [best] };
    const orientation = { turns: Number(/turned-(\d+)/.exec(best)?.[1] ?? 0) / 90, inverted: best.startsWith("inverted") };
    const after = await this.#byClass("gate", correct(image, orientation));
    if (!finite(after)) return { orientation, reasons: ["gate-not-finite"] };
    if (counts(best, before) && counts("frontal", after)) return { orientation, reasons: [] };
    if (REJECTED.includes(mostProbable(after))) return { orientation, reasons: [mostProbable(after)] };
    return { orientation, reasons: faults(orientation).map((fault) => `film-${fault.split("-")[0]}`) };
  }

  async #segment(image, answer) {
    const masks = {};
    for (const part of ["lung_segmenter", "infection_segmenter"].filter((name) => this.models[name])) {
      const { facts } = this.models[part];
      const known = { ...masks };
      const maps = await this.#run(part, image, facts.inputs.includes("lungs") ? lungsOf(masks, facts.region) : null);
      if (!maps.data.every(Number.isFinite)) {
        answer.reasons.push(`${part.replace("_", "-")}-not-finite`);
        break;
      }
      for (const [place, name] of facts.classes.entries()) {
        if (!(name in known)) masks[name] = this.#mask(part, name, maps, place, image);
      }
      if (part === "lung_segmenter") answer.reasons.push(...lungReasons(lungsOf(masks, "background"), this.about));
    }
    const lungs = LUNG_CLASSES.filter((name) => masks[name]).map((name) => masks[name].pixels);
    if (masks.infection && lungs.length) {
      masks.infection.pixels.forEach((set, place, pixels) => (pixels[place] = set && lungs.some((lung) => lung[place])));
    }
    return masks;
  }

  /** Cut the map of a class, cleaned up where it is lungs, at the image's own size. */
  #mask(part, name, maps, place, image) {
    const { facts } = this.models[part];
    const [, , height, width] = maps.dims;
    const values = maps.data.slice(place * height * width, (place + 1) * height * width);
    const threshold = facts.thresholds[name] ?? 0.5;
    if (part === "lung_segmenter" && LUNG_CLASSES.includes(name)) {
      const raw = Uint8Array.from(values, (value) => value >= threshold);
      const kept = cleanMask({ width, height, pixels: raw }, this.about.postprocess).pixels;
      kept.forEach((set, pixel) => {
        if (set !== raw[pixel]) values[pixel] = set;
      });
    }
    return restore({ width, height, values }, threshold, image, facts.config.preprocess.fit ?? "letterbox");
  }

  async #classify(image, masks, answer) {
    const { facts } = this.models.classifier;
    const sees = facts.inputs.includes("lungs");
    if (sees && answer.reasons.some((reason) => ["lungs-not-found", "lung-segmenter-not-finite"].includes(reason))) return;
    const probabilities = await this.#byClass("classifier", image, sees ? lungsOf(masks, facts.region) : null);
    if (!finite(probabilities)) {
      answer.reasons.push("classifier-not-finite");
      return;
    }
    answer.probabilities = probabilities;
    const thresholds = facts.thresholds;
    if (facts.mode !== "multilabel" && !Object.keys(thresholds).length) {
      answer.label = mostProbable(probabilities);
      return;
    }
    const plausible = Object.keys(probabilities).filter((name) => probabilities[name] >= (thresholds[name] ?? 0.5));
    if (plausible.length === 1) answer.label = plausible[0];
    else answer.reasons.push(plausible.length ? "several-answers-plausible" : "no-answer-plausible");
  }
}

/** Areas as fractions, and the interval of the infected one, as `Prediction` gives them. */
function measure(answer, masks, interval) {
  const lungs = masks.lung_field ?? masks.lung;
  const area = lungs ? count(lungs.pixels) : 0;
  answer.lungFraction = lungs ? area / lungs.pixels.length : null;
  answer.findingFractions = {};
  for (const name of Object.keys(masks).filter((name) => area && !LUNG_CLASSES.includes(name))) {
    answer.findingFractions[name] = count(masks[name].pixels.map((set, place) => set & lungs.pixels[place])) / area;
  }
  const infected = answer.findingFractions.infection;
  if (interval && infected !== undefined) {
    const group = interval.upto.findIndex((end) => Math.min(infected, 1) <= end);
    answer.infectedInterval = [Math.max(0, infected - interval.below[group]), Math.min(1, infected + interval.above[group])];
  }
}

function lungReasons(lungs, about) {
  const area = count(lungs.pixels) / lungs.pixels.length;
  if (area < Math.min(LEAST_AREA, about.min_lung_area) || area === 0) return ["lungs-not-found"];
  const reasons = area < about.min_lung_area ? [`lung-area-below-${+(100 * about.min_lung_area).toFixed(4)}-percent`] : [];
  const centres = findLungs(lungs);
  if (centres.length < 2) return [...reasons, "only-one-lung-found"];
  const [across, down] = ["x", "y"].map((axis) => Math.abs(centres[0][axis] - centres[1][axis]));
  return down > across ? [...reasons, "lungs-not-side-by-side"] : reasons;
}

function lungsOf(masks, region) {
  const names = region === "background" ? ["lung", "lung_field"] : LUNG_CLASSES;
  return masks[names.find((name) => masks[name])];
}

/** Bring a map back to the image's size, padding cut off, and cut it: bilinear, as the pipeline does. */
function restore(map, threshold, image, fit) {
  let [top, left, height, width] = [0, 0, map.height, map.width];
  if (fit === "letterbox") {
    const scale = Math.min(map.height / image.height, map.width / image.width);
    height = Math.min(map.height, Math.max(1, Math.round(image.height * scale)));
    width = Math.min(map.width, Math.max(1, Math.round(image.width * scale)));
    [top, left] = [(map.height - height) >> 1, (map.width - width) >> 1];
  }
  const line = (length, inner) =>
    Array.from({ length }, (_, place) => {
      const at = Math.min(inner - 1, Math.max(0, ((place + 0.5) * inner) / length - 0.5));
      return [Math.floor(at), Math.min(inner - 1, Math.floor(at) + 1), at - Math.floor(at)];
    });
  const columns = line(image.width, width);
  const pixels = new Uint8Array(image.width * image.height);
  line(image.height, height).forEach(([up, low, down], y) => {
    const rows = [up, low].map((row) => (top + row) * map.width + left);
    columns.forEach(([before, after, along], x) => {
      const [first, second] = rows.map((row) => map.values[row + before] * (1 - along) + map.values[row + after] * along);
      pixels[y * image.width + x] = first * (1 - down) + second * down >= threshold;
    });
  });
  return { width: image.width, height: image.height, pixels };
}

/** Turn a plane counter-clockwise by quarter turns. */
function turn(plane, turns) {
  const key = plane.grey ? "grey" : "pixels";
  let turned = plane;
  for (let left = ((turns % 4) + 4) % 4; left; left -= 1) {
    const { width, height } = turned;
    const values = new plane[key].constructor(plane[key].length);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) values[(width - 1 - x) * height + y] = turned[key][y * width + x];
    }
    turned = { width: height, height: width, [key]: values };
  }
  return turned;
}

function correct(image, { turns, inverted }) {
  return turn(inverted ? { ...image, grey: image.grey.map((value) => 1 - value) } : image, turns);
}

const faults = ({ turns, inverted }) => [...(inverted ? ["inverted"] : []), ...(turns ? [`turned-${90 * turns}`] : [])];
const finite = (probabilities) => Object.values(probabilities).every(Number.isFinite);
const mostProbable = (found) => Object.keys(found).reduce((best, name) => (found[name] > found[best] ? name : best));
const count = (pixels) => pixels.reduce((sum, set) => sum + set, 0);
