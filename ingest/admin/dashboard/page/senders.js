// The senders that have sent most in the last seconds: what their counts have grown by.

import { ask, byId, make, short } from "./text.js";

const PERIOD_MS = 5_000;
const LISTED = 20;
const COUNTS = ["readings", "posts", "refused"];

let before = null; // the last counts by sender
let beforeMs = 0;

/** Show them after one period, and again every few seconds. */
export async function showSenders() {
  try {
    if (!document.hidden) show((await ask("/senders", {}, true)).senders);
  } catch {
    // the next time
  }
  setTimeout(showSenders, PERIOD_MS);
}

function show(senders) {
  const nowMs = performance.now(), passedS = (nowMs - beforeMs) / 1000;
  const known = before;
  before = new Map(senders.map((each) => [each.sender, each]));
  beforeMs = nowMs;
  if (known === null || !senders.length) return;
  const rows = senders.map((each) => [each.sender, ...COUNTS.map((name) => Math.max(0, each[name] - (known.get(each.sender)?.[name] ?? 0)) / passedS)])
    .filter((row) => row[1] + row[2] > 0).sort((a, b) => b[1] - a[1] || b[2] - a[2]).slice(0, LISTED);
  byId("senders").hidden = false;
  byId("sender-list").tBodies[0].replaceChildren(...rows.map(([sender, ...rates]) =>
    make("tr", {}, make("td", {}, sender), ...rates.map((rate) => make("td", { class: "num" }, short(rate))))));
}
