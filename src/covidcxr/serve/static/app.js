/** The page: its parts and how they are joined. */

import { attachAnswer } from "./answer.js";
import { blob, remove, route, takeToken } from "./api.js";
import { Brush } from "./brush.js";
import { Correction } from "./correct.js";
import { by, complain, told } from "./dom.js";
import { decode, WindowedImage } from "./image.js";
import { attachGestures } from "./gestures.js";
import { attachKeys } from "./keys.js";
import { Overlays } from "./overlays.js";
import { Prior } from "./prior.js";
import { attachReport } from "./report.js";
import { Session } from "./session.js";
import { Uploads } from "./uploads.js";
import { Verdict } from "./verdict.js";
import { Viewer } from "./viewer.js";
import { Worklist } from "./worklist.js";

takeToken();
const session = new Session();
const viewer = new Viewer(by("canvas"));
const overlays = new Overlays(session, viewer);
const brush = new Brush(viewer); // after the overlays: its ring is drawn above them
const correction = new Correction(session, viewer, overlays, brush);
session.editing = () => correction.edited;
const worklist = new Worklist(session, told(choose));
const verdict = new Verdict(session);
attachAnswer(session);
new Prior(session);
attachReport(session);
new Uploads(session);
attachGestures(viewer, brush);

session.on("select", told(show));
by("remove").addEventListener("click", told(removeImage));
by("trouble-close").addEventListener("click", () => {
  by("trouble").hidden = true;
});
by("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address holds the image
  by("canvas").focus();
});
addEventListener(
  "hashchange",
  told(() => inAddress() && choose(inAddress())),
);
addEventListener("beforeunload", (event) => {
  if (correction.edited || verdict.unsaved) event.preventDefault();
});
attachKeys([
  [["j", "k"], "Next image, the one before", (at) => worklist.step(at ? -1 : 1)],
  [["u"], "Add images", () => by("files").click()],
  [["+", "-"], "Zoom in, out", (at) => viewer.zoom(at ? 0.8 : 1.25)],
  [["0"], "Fit the image to the stage", () => viewer.fit()],
  [["z"], "One image pixel, one screen pixel", () => by("whole").click()],
  [["i"], "Invert", () => by("invert").click()],
  [["r"], "Reset window and level", () => viewer.reset()],
  [[..."123456789"], "Show or hide a mask", (at) => overlays.toggle(at + 1)],
  [["h"], "Show or hide the heat map", () => overlays.toggleHeat()],
  [["o"], "Show or hide all overlays", () => overlays.toggleAll()],
  [["b", "e"], "Brush, eraser", (at) => correction.use(Boolean(at))],
  [["[", "]"], "Narrower, wider brush", (at) => correction.scale(at ? 1.25 : 0.8)],
  [["ctrl+z"], "Undo a stroke", () => brush.undo()],
  [["a"], "Re-run with the corrected mask", () => by("ask").click()],
  [["Escape"], "Put the brush away", () => correction.rest()],
  [["v"], "To the verdict", () => by("labels").querySelector("input:checked")?.focus()],
  [["?"], "These keys", () => by("keys").showModal()],
]);
told(start)();

async function start() {
  await session.load();
  const { model, limits, version } = session;
  by("model").textContent = `${model.name} · ${version} · ${model.sha256.slice(0, 8)}`;
  by("limits").textContent =
    `Up to ${Math.round(limits.file_bytes / 1e6)} MB and ${Math.round(limits.pixels / 1e6)} megapixels an image.`;
  await session.select(inAddress());
}

/** The image that the address names, if it is in the worklist. */
function inAddress() {
  const id = new URLSearchParams(location.hash.slice(1)).get("film");
  return session.images.has(id) ? id : null;
}

async function choose(id) {
  if (session.wanted === id) return;
  if (correction.edited && !confirm("The mask that you changed was not sent. Leave it?")) return;
  await session.select(id);
}

async function show(image) {
  by("empty").hidden = Boolean(image);
  by("viewer").classList.toggle("bare", !image);
  by("film-name").textContent = image?.name ?? "No image chosen";
  by("film-name").title = by("film-name").textContent;
  by("film-facts").textContent = image ? `${image.width} × ${image.height}` : "";
  by("canvas").setAttribute("aria-label", image ? `Image ${image.name}` : "No image chosen");
  document.title = image ? `${image.name} · covidcxr` : "covidcxr";
  overlays.clear();
  viewer.show(null);
  if (!image) return;
  by("wait").hidden = false;
  try {
    const [picture] = await Promise.all([blob(route(image, "image.png")).then(decode), overlays.load(image)]);
    if (session.image?.id === image.id) viewer.show(new WindowedImage(picture));
  } finally {
    by("wait").hidden = session.image?.id === image.id;
  }
}

async function removeImage() {
  const { image } = session;
  if (!confirm(`Remove ${image.name}, with its masks and verdicts, from this server?`)) return;
  const next = worklist.neighbour(image.id);
  await remove(route(image)).catch((error) => {
    if (error.status !== 404) throw error; // gone already is what was wanted
  });
  session.drop(image.id);
  await session.select(next);
}

addEventListener("unhandledrejection", (event) => complain(event.reason));
