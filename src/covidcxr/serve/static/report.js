/** The report of a film: a page to print, PDF and JSON. */

import { blob, hasToken, route } from "./api.js";
import { by, make, told } from "./dom.js";

const KINDS = ["html", "pdf", "json"];
const nameOf = (film, kind) => `film-${film.id}.${kind}`;

/** Keep the links up to date. A link carries no token; with one, the report is fetched and saved. */
export function attachReport(session) {
  session.on("select", (film) => {
    for (const kind of film ? KINDS : []) {
      const link = by(`report-${kind}`);
      link.href = route(film, `report.${kind}`);
      if (kind !== "html") link.download = nameOf(film, kind); // or a PDF would take the page's place
    }
  });
  for (const kind of KINDS) {
    const fetchAndSave = told(async (event) => {
      if (!hasToken()) return;
      event.preventDefault();
      const { film } = session;
      save(await blob(route(film, `report.${kind}`)), nameOf(film, kind));
    });
    by(`report-${kind}`).addEventListener("click", fetchAndSave);
  }
}

function save(content, name) {
  const address = URL.createObjectURL(content);
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000); // the browser may still be reading it
}
