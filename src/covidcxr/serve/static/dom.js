/** Small help with the page's elements and with words. What comes from elsewhere is text here, never markup. */

/** The element with an id; the page has all that are asked for. */
export const by = (id) => document.getElementById(id);

/**
 * Make an element: `make("td", { class: "name", text: image.name }, child)`.
 * `text` becomes its text, names that start with `on` listeners, `true` a bare attribute; null and false are left out.
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter(Boolean));
  return element;
}

const names = new Map();

/** Take over how readers write classes: `names` of the server, "COVID-19" for `covid19`. */
export function learn(shown) {
  for (const [name, text] of Object.entries(shown)) names.set(name, text);
}

/** A class, mask class or verdict as a reader writes it. */
export const words = (name) => names.get(name) ?? name;

/** The same where it stands alone, with a capital letter. */
export const title = (name) => words(name).replace(/^./u, (letter) => letter.toUpperCase());

/** A share in [0, 1] as percent; a dash where it is not known. */
export const percent = (share, digits = 0) =>
  share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`;

/** A bar that is full at 1, with a mark where `mark` is given; both in [0, 1]. */
export function track(share, mark, title) {
  const bar = make("span", { class: "track" }, make("b"), mark === undefined ? null : make("i", { title }));
  bar.firstChild.style.width = `${100 * share}%`;
  if (mark !== undefined) bar.lastChild.style.left = `${100 * mark}%`;
  return bar;
}

/** Set whether a toggle is on. */
export const press = (button, on) => button.setAttribute("aria-pressed", String(on));

/** Show that an element is busy until a promise is settled; returns what that gives. */
export async function busy(element, promise) {
  element.setAttribute("aria-busy", "true");
  try {
    return await promise;
  } finally {
    element.removeAttribute("aria-busy");
  }
}

/** Wait for so many milliseconds. */
export const pause = (time) => new Promise((resolve) => setTimeout(resolve, time));

/** Tell everybody what went wrong, until it is closed or something else goes wrong. */
export function complain(error) {
  by("trouble-words").textContent = error.message || String(error);
  by("trouble").hidden = false;
}

/** Wrap an asynchronous listener: what it throws is told on the page. */
export const told =
  (action) =>
  async (...given) => {
    try {
      return await action(...given);
    } catch (error) {
      return complain(error);
    }
  };

/** Tell those who listen to the page instead of looking at it. */
export function say(sentence) {
  by("said").textContent = sentence;
}
