/** The report of a film, as a page, PDF and JSON. */

import { blob, hasToken, route } from "./api.js";
import { by, make, told } from "./dom.js";

const KINDS = ["html", "pdf", "json"];

/** Keep the links up to date. A link carries no token; with one, the report is fetched and saved. */
export function attachReport(session) {
  session.on("select", (film) => {
    for (const kind of KINDS) by(`report-${kind}`).href = film ? route(film, `report.${kind}`) : "#";
  });
  for (const kind of KINDS) {
    by(`report-${kind}`).addEventListener(
      "click",
      told(async (event) => {
        if (!hasToken()) return;
        event.preventDefault();
        const { film } = session;
        save(await blob(route(film, `report.${kind}`)), `${film.id}.${kind}`);
      }),
    );
  }
}

function save(content, name) {
  const address = URL.createObjectURL(content);
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000); // the browser may still be reading it
}
