// The live tail: readings as they come in, newest first, a bounded number of them.

import { byId, clock, count, make, short } from "./text.js";

const ROWS_MAX = 60;

export class Tail {
  constructor(feed, lookUp) {
    this.paused = false;
    this.lookUp = lookUp;
    byId("tail-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.device = feed.device = byId("tail-device").value.trim();
      byId("tail").tBodies[0].replaceChildren();
      this.empty();
      feed.open();
    });
    byId("tail-pause").addEventListener("click", (event) => {
      this.paused = !this.paused;
      event.target.setAttribute("aria-pressed", this.paused);
      event.target.textContent = this.paused ? "Continue" : "Pause";
    });
  }

  hear({ posts, readings }) {
    if (this.paused) return;
    const body = byId("tail").tBodies[0];
    for (const [us, device, metric, value] of readings) {
      const time = make("time", { datetime: new Date(us / 1000).toISOString() }, said(us));
      body.prepend(make("tr", {}, make("td", {}, time), make("td", {}, this.link(device)), make("td", {}, metric), make("td", { class: "num" }, short(value))));
    }
    while (body.rows.length > ROWS_MAX) body.lastChild.remove();
    this.empty();
    byId("tail-note").textContent = this.device
      ? `All readings of ${this.device}, up to 20 a second. ${count(posts)} posts were checked in this second.`
      : posts ? `A sample: ${count(readings.length)} readings from ${count(posts)} posts in this second.` : "No post in this second.";
  }

  empty() {
    byId("tail-empty").hidden = byId("tail").tBodies[0].rows.length > 0;
    byId("tail-empty").textContent = this.device
      ? `No readings of ${this.device} yet. New readings appear here. Its last readings are under Devices.`
      : "No readings yet. New readings appear here.";
  }

  link(device) {
    return make("button", { type: "button", class: "plain", title: "Last readings", click: () => this.lookUp(device) }, device);
  }
}

function said(us) {
  const second = us / 1e6;
  const date = new Date(second * 1000);
  const days = Math.abs(Date.now() / 1000 - second) > 43_200;
  return (days ? `${date.toISOString().slice(0, 10)} ` : "") + clock(Math.floor(second));
}
