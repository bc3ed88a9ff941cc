// The page: brings the news of the feed to its parts.

import { Curves } from "./curves.js";
import { Device } from "./device.js";
import { Devices } from "./devices.js";
import { Feed } from "./feed.js";
import { showFigures } from "./figures.js";
import { Letters } from "./letters.js";
import { Refused } from "./refused.js";
import { showSenders } from "./senders.js";
import { heldBy, showLink, showState, steady } from "./state.js";
import { Tail } from "./tail.js";
import { byId, clock, duration, make, mayAct, notice, typed } from "./text.js";

const LATE_MS = 5_000; // after trouble the curves of a device are asked for again
const YOUNG_S = 300; // of a service: its first minutes are shown in full
let about = null; // what the history says of the service
let newest = {}; // the newest row, by column
let curves = null;
let level = "ok";
let held = ""; // why writes are paused

const value = (name) => newest[name] ?? null;

function onHistory(history) {
  about = history;
  Object.assign(typed, history.typed);
  byId("instance").textContent = `${history.version} on ${history.host}, posts to ${history.listen}`;
  byId("foot").textContent = `This process started at ${clock(Date.parse(history.started) / 1000)}. The charts keep ${duration(history.seconds_kept).replace(" 0 s", "")}.`;
  byId("foot-runbook").hidden = !history.runbook;
  if (!curves) {
    curves = new Curves(history);
    const span = history.columns.state.length < YOUNG_S ? 300 : 900;
    document.querySelector(`[name=range][value="${span}"]`).checked = true;
    curves.board.span = span;
    tail.begin();
  }
  curves.append(history.first, history.columns);
  feed.last = Math.max(feed.last, curves.board.rows ? curves.board.last : 0);
  curves.draw();
}

function onNews(event) {
  newest = Object.fromEntries(about.order.map((name, at) => [name, event.v[at]]));
  curves.append(event.t, Object.fromEntries(Object.entries(newest).map(([name, one]) => [name, [one]])));
  steady(event.ready.full_in_s);
  held = heldBy(event.ready);
  const lately = curves.lately();
  const trouble = showState(event, about, value, lately);
  showFigures(event, about, value, lately);
  if (level !== "ok" && event.level === "ok") setTimeout(() => device.draw(), LATE_MS); // readings that waited are written now
  level = event.level;
  if (event.ready.instances) {
    if (!devices.several) devices.isOfSeveral(), tail.isOfSeveral();
    import("./instances.js").then(({ showInstances }) => showInstances(event, about));
  }
  refused.hear(event.ready);
  letters.hear(newest.dlq_readings);
  curves.draw();
  document.title = `${trouble ? `${trouble[0].toUpperCase()}${trouble.slice(1)} – ` : ""}iot-ingest on ${about.host}`;
}

export const device = new Device(() => feed.last || Date.now() / 1000, (name, found) => devices.mark(name, found), () => held);
const open = (name) => device.open(name);
const devices = new Devices(open, ({ devices: listed, more }) => {
  // Of a few devices the first is shown at once; of many, none until the reader chooses.
  if (listed.length && !more && !device.chosen) device.open(listed[0].device_id, true);
});
const letters = new Letters();
const refused = new Refused();
const feed = new Feed({ history: onHistory, news: onNews, tail: (event) => tail.hear(event), link: showLink });
const tail = new Tail(feed, open);

for (const radio of document.querySelectorAll("[name=range]")) {
  radio.addEventListener("change", () => curves?.show(Number(radio.value)));
}

// Colours: those of the system, or those that the user chose here.
const THEMES = ["auto", "light", "dark"];
const theme = byId("theme");
function paint(chosen) {
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  theme.textContent = `Colours: ${chosen}`;
  theme.dataset.chosen = chosen;
  curves?.draw();
  device.board.draw();
}
theme.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(theme.dataset.chosen) + 1) % THEMES.length];
  localStorage.setItem("theme", next);
  paint(next);
});
paint(THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "auto");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(theme.dataset.chosen));

byId("zone").textContent = `Times: ${Intl.DateTimeFormat().resolvedOptions().timeZone}`;
byId("foot-login").hidden = mayAct;
if (!mayAct) notice("look-only", "You can look, but not act. To act, open the address with the key that the start of the service printed, or ", make("a", { href: "/login" }, "log in"), ".");

feed.open();
showSenders();
devices.load();
letters.load();
device.restore();
