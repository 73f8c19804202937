/** Single keys, and the legend that tells them. They rest while somebody types, and can be turned off. */

import { by, make } from "./dom.js";

const KEPT = "covidcxr-keys";
const SHOWN = { Escape: "Esc", "ctrl+z": "Ctrl Z" };

/** Listen for keys: `[keys, words, action]`, keys as `KeyboardEvent.key` has them; the action is told which it was. */
export function attachKeys(actions) {
  by("key-list").append(
    ...actions.flatMap(([keys, words]) => [
      make("dt", {}, ...keys.map((key) => make("kbd", { text: SHOWN[key] ?? key.toUpperCase() }))),
      make("dd", { text: words }),
    ]),
  );
  const act = new Map(actions.flatMap(([keys, , action]) => keys.map((key, at) => [key, () => action(at)])));
  by("keys-on").checked = localStorage.getItem(KEPT) !== "off";
  by("keys-on").addEventListener("change", ({ target }) => localStorage.setItem(KEPT, target.checked ? "on" : "off"));
  by("open-keys").addEventListener("click", () => by("keys").showModal());

  addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (
      event.altKey ||
      event.metaKey ||
      target.matches("textarea, select, input:not([type=range], [type=radio], [type=checkbox])")
    )
      return;
    if (document.querySelector("dialog[open]")) return;
    if (event.ctrlKey) {
      if (key.toLowerCase() !== "z") return;
      act.get("ctrl+z")();
    } else {
      const action = act.get(key.length === 1 ? key.toLowerCase() : key);
      if (!action || !by("keys-on").checked) return;
      action();
    }
    event.preventDefault();
  });
}
