// The newest readings: first those of the table, then what comes in. A bounded number of them.

import { ask, byId, clock, count, deviceLink, make, measured } from "./text.js";

const ROWS_MAX = 60;

export class Tail {
  constructor(feed, open) {
    this.paused = false;
    this.open = open;
    byId("tail-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.device = feed.device = byId("tail-device").value.trim();
      byId("tail").tBodies[0].replaceChildren();
      this.empty();
      this.begin();
      feed.open();
    });
    byId("tail-pause").addEventListener("click", (event) => {
      this.paused = !this.paused;
      event.target.setAttribute("aria-pressed", this.paused);
      event.target.textContent = this.paused ? "Continue" : "Pause";
    });
  }

  /** Several processes take posts, and only a sample of them comes: it is not enough for one device. */
  isOfSeveral() {
    for (const part of byId("tail-form").querySelectorAll("input, button:not([id])")) part.hidden = true;
  }

  /** Show the newest readings of the table, unless others have come meanwhile. */
  async begin() {
    const device = this.device ?? "";
    try {
      const { readings } = await ask(`/devices/newest?limit=30${device && `&device_id=${encodeURIComponent(device)}`}`);
      const body = byId("tail").tBodies[0];
      if (body.rows.length || device !== (this.device ?? "")) return;
      body.append(...readings.map((each) => this.row(Date.parse(each.ts) * 1000, each.device_id ?? device, each.metric, each.value)));
      this.empty();
    } catch {
      // the service is away: new readings come by the feed
    }
  }

  row(us, device, metric, value) {
    const time = Number.isNaN(us) ? "" : make("time", { datetime: new Date(us / 1000).toISOString() }, said(us));
    return make("tr", {}, make("td", {}, time), make("td", {}, deviceLink(device, this.open)), make("td", {}, metric), make("td", { class: "num" }, measured(value)));
  }

  hear({ posts, readings }) {
    if (this.paused) return;
    const body = byId("tail").tBodies[0];
    for (const reading of readings) body.prepend(this.row(...reading));
    while (body.rows.length > ROWS_MAX) body.lastChild.remove();
    this.empty();
    byId("tail-note").textContent = this.device
      ? `All readings of ${this.device}, up to 20 a second. ${count(posts)} posts were checked in this second.`
      : posts ? `A sample: ${count(readings.length)} readings from ${count(posts)} ${posts === 1 ? "post" : "posts"} in this second.` : "No post in this second.";
  }

  empty() {
    byId("tail-empty").hidden = byId("tail").tBodies[0].rows.length > 0;
    byId("tail-empty").textContent = this.device
      ? `No readings of ${this.device} yet. New readings appear here.`
      : "No readings yet. New readings appear here.";
  }
}

function said(us) {
  const second = us / 1e6;
  const date = new Date(second * 1000);
  const days = Math.abs(Date.now() / 1000 - second) > 43_200;
  return (days ? `${date.toISOString().slice(0, 10)} ` : "") + clock(Math.floor(second));
}
