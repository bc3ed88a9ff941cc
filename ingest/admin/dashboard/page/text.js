// Texts and elements: numbers with units, times, and a DOM made of text only.
// Nothing here parses markup, so the name of a device can only become a text node.

export const byId = (id) => document.getElementById(id);

/** How a command of the service is typed: `run`, and `restart`. The history says how it is here. */
export const typed = { run: "ingest", restart: "ingest serve" };

/** A text whose control characters are written as JSON does: a font has no sign for them. */
const printable = (text) => text.replace(/[\0-\x08\x0b-\x1f\x7f-\x9f]/g, (each) => `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** Make an element. `has` are attributes (`class`, `title`, ..); children are nodes or texts. */
export function make(name, has = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(has)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== false && value != null) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.map((each) => (each instanceof Node ? each : printable(String(each ?? "")))));
  return element;
}

/** A command, whose words are not broken at their hyphens. */
export const command = (text) => make("code", {}, ...text.split(/(\s+)/).map((word) => (/\S/.test(word) ? make("span", {}, word) : word)));

/** Put a text into an element; text between backticks is shown as code. */
export function say(element, text) {
  if (element.dataset.said === text) return; // a screen reader need not hear it again
  element.dataset.said = text;
  element.replaceChildren(...text.split("`").map((part, at) => (at % 2 ? command(part) : part)));
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A count in full: 12,345. */
export const count = (value) => (value == null ? "–" : whole.format(value));

/** A number in about three digits: 0.42, 7.3, 128, 12.4 k, 1.20 M. */
export function short(value) {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (size < 10) return String(Math.round(value * 100) / 100);
  if (size < 100) return String(Math.round(value * 10) / 10);
  if (size < 10_000) return whole.format(value);
  for (const [unit, least] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (size >= least) {
      const scaled = value / least;
      return `${scaled >= 100 ? Math.round(scaled) : Math.round(scaled * 10) / 10} ${unit}`;
    }
  }
  return whole.format(value);
}

/** A value that a device sent, in at most five digits; whole numbers up to a million in full. */
export function measured(value) {
  if (value == null) return "–";
  const size = Math.abs(value);
  if (size >= 1e6 || (size < 1e-4 && size > 0)) return size < 1 || size >= 1e12 ? String(Number(value.toPrecision(5))) : short(value);
  return new Intl.NumberFormat("en", { maximumFractionDigits: Math.max(0, size < 1 ? 6 : 4 - Math.floor(Math.log10(size))) }).format(value);
}

/** Milliseconds for people. */
export function ms(value) {
  if (value == null) return "–";
  return value < 1000 ? `${short(value)} ms` : `${short(value / 1000)} s`;
}

/** Seconds for people: 4 s, 3 min 12 s, 2 h 5 min. */
export function duration(seconds) {
  if (seconds == null || Number.isNaN(seconds)) return "–";
  const s = Math.max(0, seconds);
  if (s < 10) return `${short(s)} s`;
  if (s < 60) return `${Math.round(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.round((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.round((s % 86400) / 3600)} h`;
}

/** Seconds for people, to plan with: 5 min, 11 h, 3 d. */
export function rough(seconds) {
  if (seconds == null) return "–";
  for (const [unit, least] of [["d", 86400], ["h", 3600], ["min", 60]]) if (seconds >= least * 1.5) return `${Math.round(seconds / least)} ${unit}`;
  return `${Math.max(0, Math.round(seconds))} s`;
}

/** Bytes for people. */
export function bytes(value) {
  if (value == null) return "–";
  let left = value;
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (left < 1000) return `${short(left)} ${unit}`; // at most three digits
    left /= 1024;
  }
  return `${short(left)} TiB`;
}

const two = (value) => String(value).padStart(2, "0");

/** The time of day of a Unix second. */
export function clock(second, withSeconds = true) {
  const date = new Date(second * 1000);
  const minutes = `${two(date.getHours())}:${two(date.getMinutes())}`;
  return withSeconds ? `${minutes}:${two(date.getSeconds())}` : minutes;
}

/** Day and time of an RFC 3339 text; another text is shown as it is. */
export function moment(text) {
  const date = new Date(text);
  if (typeof text !== "string" || Number.isNaN(date.getTime())) return String(text);
  const today = date.toDateString() === new Date().toDateString();
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} `;
  return (today ? "" : day) + clock(date.getTime() / 1000);
}

/** A button that looks like a link and shows a device. */
export const deviceLink = (device, open) => make("button", { type: "button", class: "plain", title: "Show this device", click: () => open(device) }, device);

/** Ask the service for JSON. Throws an Error with a text for the user. If the answer is that a log-in
 *  is needed, the page goes there, unless it is to `stay`. */
export async function ask(path, options = {}, stay = false) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the service does not answer");
  }
  if (response.status === 401 && !stay) {
    location.assign("/login");
    throw new Error("log in again");
  }
  const document_ = await response.json().catch(() => null);
  if (!response.ok) {
    const told = document_?.detail || document_?.title || `status ${response.status}`;
    throw new Error(told);
  }
  return document_;
}

const csrf = document.querySelector("meta[name=csrf]")?.content ?? "";

/** Whether this browser may act, or only look. */
export const mayAct = csrf !== "";
export const csrfHeader = { "X-CSRF-Token": csrf };

/** Say something once, above the figures, until the reader closes it; a closed one stays closed. */
export function notice(id, text, ...more) {
  if (byId(id) || localStorage.getItem(id) === text) return;
  const close = () => {
    localStorage.setItem(id, text);
    byId(id).remove();
  };
  const said = make("p", {});
  say(said, text);
  said.append(...more);
  byId("notices").append(make("div", { class: "notice", id }, said, make("button", { type: "button", "aria-label": "Close this note", click: close }, "×")));
}

/** Say once that questions about one device are slow, if an answer says so. */
export const advise = (advice) => advice && notice("advice", `Questions about one device are slow in a large table: ${advice}.`);

/** Rows of a table; on a phone each is a card, so each cell knows the name of its column. */
export function fill(table, rows) {
  const names = [...table.tHead.rows[0].cells].map((each) => (each.querySelector(".hush") ? "" : each.textContent));
  for (const row of rows) [...row.cells].forEach((cell, at) => (cell.dataset.label = names[at]));
  table.tBodies[0].replaceChildren(...rows);
}

/** Ask the service for an action. The token shows that the request comes from this page. */
export const act = (path, body) =>
  ask(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...csrfHeader },
    body: JSON.stringify(body),
  });

/** Ask for a confirmation; resolves to true or false. */
export function confirmed(title, text, yes, danger = false) {
  const dialog = byId("ask");
  byId("ask-title").textContent = title;
  byId("ask-text").textContent = text;
  byId("ask-yes").textContent = yes;
  byId("ask-yes").className = danger ? "danger" : "";
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
