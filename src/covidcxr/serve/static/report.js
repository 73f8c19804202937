/** The report of an image: a page to print, PDF and JSON. */

import { blob, hasToken, route } from "./api.js";
import { busy, by, make, pause, told } from "./dom.js";

const KINDS = ["html", "pdf", "json"];
const nameOf = (image, kind) => `film-${image.id}.${kind}`;

/** Keep the links up to date. A link carries no token; with one, the page is fetched and saved as the others are. */
export function attachReport(session) {
  session.on("select", (image) => {
    for (const kind of image ? KINDS : []) by(`report-${kind}`).href = route(image, `report.${kind}`);
  });
  for (const kind of KINDS) {
    const link = by(`report-${kind}`);
    const act = told(async (event) => {
      event.preventDefault();
      if (link.hasAttribute("aria-busy")) return;
      by("report-state").textContent = "The report is being made …";
      try {
        await busy(link, kind === "html" && !hasToken() ? show(link.href) : fetchAndSave(session.image, kind));
      } finally {
        by("report-state").textContent = "";
      }
    });
    link.addEventListener("click", act);
  }
}

/** Open a page in a tab of its own, and wait until it is there. */
async function show(address) {
  const tab = window.open(address, "_blank");
  try {
    while (tab && !tab.closed && (tab.location.href === "about:blank" || tab.document.readyState !== "complete"))
      await pause(200);
  } catch {
    // The browser shows a page of its own there: the server is gone.
  }
}

async function fetchAndSave(image, kind) {
  const content = await blob(route(image, `report.${kind}`));
  const address = URL.createObjectURL(content);
  make("a", { href: address, download: nameOf(image, kind) }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000); // the browser may still be reading it
}
