/** The server's routes. The token comes in the address (`#token=...`), is kept for this tab, and rides in a header. */

import { by } from "./dom.js";

const KEPT = "covidcxr-token";
let asking = null;

/** Changes that this page has sent, and how many of them are still on their way. */
export const writes = { sent: 0, running: 0 };

/** What the server refused, and why. */
export class ApiError extends Error {
  constructor(message, status, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Move the token from the address into this tab's own store, so that it is neither shown nor shared by a link. */
export function takeToken() {
  const address = new URLSearchParams(location.hash.slice(1));
  const given = address.get("token");
  if (!given) return;
  sessionStorage.setItem(KEPT, given);
  address.delete("token");
  history.replaceState(null, "", `${location.pathname}${address.size ? `#${address}` : ""}`);
}

/** Whether calls carry a token; a plain link cannot. */
export const hasToken = () => sessionStorage.getItem(KEPT) !== null;

function authorised() {
  return hasToken() ? { Authorization: `Bearer ${sessionStorage.getItem(KEPT)}` } : {};
}

function askToken() {
  const dialog = by("ask-token");
  asking ??= new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        if (by("token").value) sessionStorage.setItem(KEPT, by("token").value);
        by("token").value = "";
        resolve();
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

function refused(status, text, retryAfter) {
  let message = `The server answered ${status}.`;
  try {
    message = JSON.parse(text).error || message;
  } catch {
    // Something between us and the server answered in its own words; the status says enough.
  }
  return new ApiError(message, status, Number(retryAfter) || 1);
}

/** Call a route and return its response; whatever is not a success is thrown as an `ApiError`. */
export async function request(method, path, body, headers = {}) {
  if (method === "GET") return send(method, path, body, headers);
  return counted(() => send(method, path, body, headers));
}

async function counted(action) {
  writes.sent += 1;
  writes.running += 1;
  try {
    return await action();
  } finally {
    writes.running -= 1;
  }
}

async function send(method, path, body, headers) {
  let response;
  try {
    response = await fetch(path, {
      method,
      body,
      headers: { ...headers, ...authorised() },
      credentials: "same-origin",
    });
  } catch {
    throw new ApiError("The server does not answer. Is it still running?", 0);
  }
  if (response.status === 401) {
    await askToken();
    return send(method, path, body, headers);
  }
  if (!response.ok) throw refused(response.status, await response.text(), response.headers.get("Retry-After"));
  return response;
}

/** GET something as JSON. */
export const get = async (path) => (await request("GET", path)).json();

/** GET a picture or a report as a blob. */
export const blob = async (path) => (await request("GET", path)).blob();

/** PUT plain data as JSON and return the image that comes back. */
export const put = async (path, data) =>
  (await request("PUT", path, JSON.stringify(data), { "Content-Type": "application/json" })).json();

/** PUT a PNG and return the image that comes back. */
export const putPng = async (path, png) => (await request("PUT", path, png, { "Content-Type": "image/png" })).json();

/** DELETE something; returns the response. */
export const remove = (path) => request("DELETE", path);

/** The address of an image or of something that belongs to it. */
export const route = (image, ...parts) =>
  ["/api/films", image.id, ...parts].map((part, at) => (at ? encodeURIComponent(part) : part)).join("/");

/** Upload one file; `progress` is called with the share that was sent. Fetch cannot tell it, so this is an XHR. */
export const upload = (file, progress) => counted(() => post(file, progress));

function post(file, progress) {
  return new Promise((resolve, reject) => {
    const call = new XMLHttpRequest();
    call.open("POST", "/api/films");
    for (const [name, value] of Object.entries(authorised())) call.setRequestHeader(name, value);
    call.upload.addEventListener("progress", (event) => event.lengthComputable && progress(event.loaded / event.total));
    call.upload.addEventListener("load", () => progress(1));
    call.addEventListener("error", () => reject(new ApiError("It was not sent: the server closed the connection.", 0)));
    call.addEventListener("load", async () => {
      if (call.status === 201) resolve(JSON.parse(call.responseText));
      else if (call.status === 401) resolve(askToken().then(() => post(file, progress)));
      else reject(refused(call.status, call.responseText, call.getResponseHeader("Retry-After")));
    });
    const form = new FormData();
    form.append("file", file);
    call.send(form);
  });
}
