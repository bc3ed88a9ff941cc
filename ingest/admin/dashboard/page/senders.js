// The senders that have sent most in the last seconds: what their counts have grown by.

import { ask, byId, fill, make, short } from "./text.js";

const PERIOD_MS = 5_000;
const LISTED = 20;

let before = new Map(); // the last counts by sender
let beforeMs = 0;

/** Show them after two periods, and again every few seconds. */
export async function showSenders() {
  try {
    if (!document.hidden) show((await ask("/senders", {}, true)).senders);
  } catch {
    // the next time
  }
  setTimeout(showSenders, PERIOD_MS);
}

function show(senders) {
  const nowMs = performance.now();
  const rate = (each, name) => (each[name] - (before.get(each.sender) ?? each)[name]) / (nowMs - beforeMs) * 1000;
  const rows = senders.map((each) => [rate(each, "readings"), rate(each, "posts"), rate(each, "refused"), each.sender])
    .filter((row) => row[1] > 0).sort((a, b) => b[0] - a[0]).slice(0, LISTED);
  [before, beforeMs] = [new Map(senders.map((each) => [each.sender, each])), nowMs];
  if (rows.length) byId("senders").hidden = false;
  fill(byId("sender-list"), rows.map(([readings, posts, refused, sender]) =>
    make("tr", {}, make("td", {}, sender), ...[readings, posts, refused].map((each) => make("td", { class: "num" }, short(each))))));
}
