// The last refused posts, for those who may act: they may hold what a device sent.

import { ask, byId, count, csrfHeader, fill, make, mayAct, moment, say } from "./text.js";

const PERIOD_MS = 3_000;

export class Refused {
  constructor() {
    this.known = "";
    this.stale = false;
    setInterval(() => this.stale && !document.hidden && this.load(), PERIOD_MS);
  }

  /** Called every second with the refused posts and closed connections of the last minute. */
  hear({ refused_60s, closed_60s }) {
    if (!refused_60s) return;
    const told = [of("Refused in the last minute", refused_60s), of("Connections closed in the last minute", closed_60s ?? {})].filter(Boolean);
    const now = JSON.stringify([refused_60s, closed_60s]);
    if (now !== this.known) this.stale = mayAct;
    this.known = now;
    if (told.length) byId("refused").hidden = false;
    say(byId("refused-note"), (told.join(" ") || "None in the last minute."));
    byId("refused-scroll").hidden = !this.some;
  }

  async load() {
    this.stale = false;
    try {
      const { posts } = await ask("/refused", { headers: csrfHeader }, true);
      this.some = posts.length > 0;
      if (this.some) byId("refused").hidden = false;
      fill(byId("refused-list"), posts.map((each) => {
        const why = [each.code, each.item_code, each.field].filter(Boolean).join(", ");
        return make("tr", {}, make("td", {}, moment(each.at)), make("td", {}, each.peer || "–", each.count > 1 ? ` (${count(each.count)} so far)` : ""), make("td", {}, make("code", {}, why)), make("td", { class: "wide", title: each.body }, make("span", { class: "two" }, each.body)));
      }));
    } catch {
      this.some = false; // it may not be shown here
    }
  }
}

function of(title, counts) {
  const told = Object.entries(counts).filter(([, number]) => number).map(([code, number]) => `${count(number)} \`${code}\``);
  return told.length ? `${title}: ${told.join(", ")}.` : "";
}
