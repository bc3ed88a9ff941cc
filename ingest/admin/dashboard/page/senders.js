// The senders that have sent most in the last seconds.

import { ask, byId, make, short } from "./text.js";

const PERIOD_MS = 5_000;

/** Show them now, and again every few seconds. */
export async function showSenders() {
  try {
    if (!document.hidden) show((await ask("/senders", {}, true)).senders);
  } catch {
    // the next time
  }
  setTimeout(showSenders, PERIOD_MS);
}

function show(senders) {
  if (senders.length) byId("senders").hidden = false;
  byId("sender-list").tBodies[0].replaceChildren(...senders.map((each) =>
    make("tr", {}, make("td", {}, each.sender), ...[each.readings_per_s, each.posts_per_s, each.refused_per_s].map((rate) => make("td", { class: "num" }, short(rate))))));
}
