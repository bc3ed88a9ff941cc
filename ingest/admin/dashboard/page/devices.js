// The devices seen, and the last readings of one of them from the table.

import { ask, byId, count, duration, make, moment, short } from "./text.js";

const PERIOD_MS = 5_000;
const TABS = ["silent", "newest", "rejected"];
const EMPTY = {
  silent: "No device has been silent for that long.",
  newest: "No device has posted yet.",
  rejected: "No reading has been rejected.",
};

export class Devices {
  constructor() {
    this.tab = "silent";
    this.report = null;
    for (const tab of TABS) {
      byId(`tab-${tab}`).addEventListener("click", () => this.choose(tab));
      byId(`tab-${tab}`).addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!step) return;
        this.choose(TABS[(TABS.indexOf(tab) + step + 3) % 3]);
        byId(`tab-${this.tab}`).focus();
      });
    }
    byId("silent-s").addEventListener("change", () => this.load());
    byId("lookup-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.lookUp(byId("lookup-device").value.trim());
    });
    setInterval(() => document.hidden || document.body.dataset.link !== "live" || this.load(), PERIOD_MS);
  }

  choose(tab) {
    this.tab = tab;
    for (const each of TABS) {
      byId(`tab-${each}`).setAttribute("aria-selected", each === tab);
      byId(`tab-${each}`).tabIndex = each === tab ? 0 : -1;
    }
    byId("device-list").setAttribute("aria-labelledby", `tab-${tab}`);
    this.show();
    this.load();
  }

  async load() {
    try {
      this.report = await ask(`/devices?silent_s=${byId("silent-s").value}`);
      this.show();
    } catch (error) {
      byId("devices-count").textContent = `Not available: ${error.message}.`;
    }
  }

  show() {
    const report = this.report;
    if (!report) return;
    const about = report.exact ? "" : "about ";
    byId("devices-count").textContent = `${about}${count(report.count)} seen since ${moment(report.since)}.` + (report.exact ? "" : ` ${count(report.followed_max)} of them are tracked one by one; the others are only counted.`);
    byId("n-silent").textContent = report.silent_count ? count(report.silent_count) : "";
    const list = report[this.tab];
    if (!list.length) {
      byId("device-list").replaceChildren(make("p", { class: "empty" }, EMPTY[this.tab]));
      return;
    }
    const rejected = this.tab === "rejected";
    const heads = rejected ? ["Device", "Rejected"] : ["Device", this.tab === "newest" ? "First seen" : "Silent for", "Last seen"];
    const rows = list.map((each) => {
      const age = (Date.now() - Date.parse(each.last_seen)) / 1000;
      const cells = rejected ? [count(each.rejected)] : [this.tab === "newest" ? moment(each.first_seen) : duration(age), moment(each.last_seen)];
      return make("tr", {}, make("td", {}, this.link(each.device_id)), ...cells.map((cell) => make("td", { class: "num" }, cell)));
    });
    byId("device-list").replaceChildren(table(heads, rows));
  }

  link(device) {
    return make("button", { type: "button", class: "plain", title: "Last readings", click: () => this.lookUp(device) }, device);
  }

  /** Show the last readings of a device, with the address that gives them as JSON. */
  async lookUp(device) {
    if (!device) return;
    byId("lookup-device").value = device;
    const place = byId("lookup");
    place.hidden = false;
    place.replaceChildren(make("p", { class: "empty" }, "Asking the database .."));
    const path = `/devices/readings?device_id=${encodeURIComponent(device)}&limit=20`;
    try {
      const { readings, seen } = await ask(path);
      const rows = readings.map((each) => make("tr", {}, make("td", {}, moment(each.ts)), make("td", {}, each.metric), make("td", { class: "num" }, short(each.value))));
      const note = seen ? `seen ${moment(seen.last_seen)}` : "not seen since the service started";
      place.replaceChildren(
        make("p", { class: "note" }, make("b", {}, device), `: ${note}. `, make("a", { href: path }, "JSON")),
        rows.length ? table(["Time of the reading", "Metric", "Value"], rows) : make("p", { class: "empty" }, "The table has no reading of this device. Is the name correct?"),
      );
    } catch (error) {
      place.replaceChildren(make("p", { class: "empty" }, `Not available: ${error.message}.`));
    }
    place.scrollIntoView({ block: "nearest" });
  }
}

function table(heads, rows) {
  const row = make("tr", {}, ...heads.map((head, at) => make("th", { scope: "col", class: at && !(heads.length === 3 && head === "Metric") ? "num" : false }, head)));
  return make("table", {}, make("thead", {}, row), make("tbody", {}, ...rows));
}
