// The lists of devices: all with their last readings, the silent, the new and the rejected ones.

import { advise, ask, byId, count, deviceLink, duration, make, measured, moment, rough, say } from "./text.js";

const PERIOD_MS = 10_000;
const FIRST_MS = 2_000;
const TYPED_MS = 250;
const PAGE = 50;
const KEPT_MAX = 1_000; // last readings, for the time in which the database does not tell them
const TABS = ["all", "silent", "newest", "rejected"];
const EMPTY = {
  silent: "Every device has posted in this time.",
  newest: "No device has posted yet.",
  rejected: "No reading has been rejected.",
};

export class Devices {
  /** `open` shows one device. `onPage` hears of each page of the list. */
  constructor(open, onPage) {
    Object.assign(this, { open, onPage, current: "", kept: new Map() });
    this.tab = "all";
    this.after = "";
    this.several = false;
    this.report = this.page = null;
    for (const tab of TABS) {
      byId(`tab-${tab}`).addEventListener("click", () => this.choose(tab));
      byId(`tab-${tab}`).addEventListener("keydown", (event) => {
        const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
        if (!step) return;
        this.choose(TABS[(TABS.indexOf(tab) + step + TABS.length) % TABS.length]);
        byId(`tab-${this.tab}`).focus();
      });
    }
    byId("silent-s").addEventListener("change", () => this.load());
    byId("find").addEventListener("input", () => {
      clearTimeout(this.typed);
      this.typed = setTimeout(() => this.turn(""), TYPED_MS);
    });
    byId("find-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.find();
    });
    byId("page-first").addEventListener("click", () => this.turn(""));
    byId("page-next").addEventListener("click", () => this.turn(this.page.devices.at(-1).device_id));
    setInterval(() => document.hidden || this.load(), PERIOD_MS);
    setInterval(() => this.report?.count === 0 && !document.hidden && this.load(), FIRST_MS); // until the first posts
  }

  /** Several processes take posts. This one knows the devices of the table only. */
  isOfSeveral() {
    this.several = true;
    for (const tab of ["silent", "newest"]) byId(`tab-${tab}`).hidden = true;
    this.show();
  }

  get prefix() {
    return byId("find").value.trim();
  }

  choose(tab) {
    this.tab = tab;
    for (const each of TABS) {
      byId(`tab-${each}`).setAttribute("aria-selected", each === tab);
      byId(`tab-${each}`).tabIndex = each === tab ? 0 : -1;
    }
    byId("device-list").setAttribute("aria-labelledby", `tab-${tab}`);
    if (this.report) this.fill();
    this.show();
    this.load();
  }

  turn(after) {
    this.after = after;
    if (this.tab !== "all") this.choose("all");
    else this.load();
  }

  /** Show the device that was typed, or the only one that begins like that. */
  async find() {
    clearTimeout(this.typed);
    if (!this.prefix) return;
    await this.turn("");
    const found = this.page?.devices ?? [];
    this.open(found.length === 1 ? found[0].device_id : this.prefix);
  }

  async load() {
    try {
      this.report = await ask(`/devices?silent_s=${byId("silent-s").value}`);
      if (this.tab === "all") this.page = await ask(`/devices/list?${new URLSearchParams({ limit: PAGE, prefix: this.prefix, after: this.after })}`);
      this.keep();
      this.show();
      if (this.page) this.onPage(this.page);
    } catch (error) {
      say(byId("devices-count"), `Not available: ${error.message}.`);
    }
  }

  /** Keep the last readings that the database tells; while it does not, those of before are shown. */
  keep() {
    if (this.kept.size > KEPT_MAX) this.kept.clear();
    for (const each of this.page?.devices ?? []) {
      if (each.last) this.kept.set(each.device_id, each.last);
      else if (this.page.why) [each.last, each.old] = [this.kept.get(each.device_id), true];
    }
  }

  show() {
    const { report, page } = this;
    byId("pages").hidden = this.tab !== "all" || !(this.after || page?.more);
    byId("silent-form").hidden = this.tab !== "silent";
    if (!report) return;
    byId("n-silent").textContent = report.silent_count ? count(report.silent_count) : "";
    const least = report.exact ? "" : "at least ";
    let note = `${least}${count(report.count)} seen since ${moment(report.since)}.` + (report.exact ? "" : ` ${count(report.followed_max)} of them are tracked one by one; the others are only counted.`);
    if (this.several) note = "The devices of the table. When each of them posted last is not tracked with several processes.";
    if (this.tab === "all" && page) {
      if (this.prefix && !this.several) note = `${least}${count(page.matching)} seen that begin with ${this.prefix}.`;
      if (page.why) note += this.current ? " Values: as last stored." : ` Values: as last stored (${page.why}).`;
      if (page.more) advise(page.advice);
      byId("page-first").disabled = !this.after;
      byId("page-next").disabled = !page.more;
    }
    say(byId("devices-count"), note);
    if (!byId("device-list").contains(document.activeElement)) this.fill(); // who is there with the keyboard stays
  }

  fill() {
    byId("device-list").replaceChildren(this.tab === "all" ? this.all() : this.reported());
  }

  all() {
    const devices = [...(this.page?.devices ?? [])];
    if (this.current && !this.prefix && !devices.some((each) => each.device_id === this.current)) devices.unshift(this.page?.why ? { ...this.pinned, seen: null, old: true } : this.pinned);
    if (!devices.length) return make("p", { class: "empty" }, this.prefix ? "No device begins like that. Find looks in the table." : this.page?.why ? "The table cannot be read now." : this.several ? "The table has no device yet." : EMPTY.newest);
    return table(["Device", "Last reading", "Last seen"], devices.map(({ device_id, seen, last, old }) => {
      const time = old ? seen?.last_seen : (last?.ts ?? seen?.last_seen); // the age of an old value is not that of the device
      return [deviceLink(device_id, this.open), last ? make("span", old ? { class: "old", title: `of ${moment(last.ts)}` } : {}, `${last.metric} `, make("b", {}, measured(last.value))) : "–", time ? ago(time) : "–"];
    }), 1, (at) => devices[at].device_id === this.current);
  }

  /** Mark the device that is shown. If it is not in the list, it is above it, with what was `found`. */
  mark(device, found = { device_id: device }) {
    const isNew = device !== this.current;
    Object.assign(this, { current: device, pinned: found });
    if (this.report && (isNew || !byId("device-list").contains(document.activeElement))) this.fill();
  }

  reported() {
    const list = this.report[this.tab];
    if (!list.length) return make("p", { class: "empty" }, EMPTY[this.tab]);
    if (this.tab === "rejected") return table(["Device", "Rejected readings"], list.map((each) => [deviceLink(each.device_id, this.open), count(each.rejected)]));
    const newest = this.tab === "newest";
    return table(["Device", newest ? "First seen" : "Silent for", "Last seen"], list.map((each) => [
      deviceLink(each.device_id, this.open),
      newest ? moment(each.first_seen) : duration((Date.now() - Date.parse(each.last_seen)) / 1000),
      moment(each.last_seen),
    ]));
  }
}

function ago(time) {
  const seconds = (Date.now() - Date.parse(time)) / 1000;
  const text = Number.isNaN(seconds) ? String(time) : seconds < -5 ? `in ${rough(-seconds)}` : seconds < 1 ? "now" : `${rough(seconds)} ago`;
  return make("time", { datetime: String(time), title: moment(time) }, text);
}

/** A table; the columns after the first `left` + 1 are to the right. */
function table(heads, rows, left = 0, isCurrent = () => false) {
  const of = (name, cells, has, current = false) => make("tr", { "aria-current": current && "true" }, ...cells.map((cell, at) => make(name, { ...has, class: at > left ? "num" : false }, cell)));
  return make("table", {}, make("thead", {}, of("th", heads, { scope: "col" })), make("tbody", {}, ...rows.map((cells, at) => of("td", cells, {}, isCurrent(at)))));
}
