// One device: its values as a curve, live, and its last readings. The address keeps what is shown.

import { Board } from "./board.js";
import { Chart } from "./charts.js";
import { ask, byId, make, moment, say, short } from "./text.js";

const STEPS_S = { 900: 3, 3600: 12, 86400: 300, 604800: 3600, 2592000: 7200, 31536000: 86400 }; // some 300 points, whole hours from 7 d on
const LIVE_S = [3, 60]; // asks again after a step, but not more and not less often
const LAST_MS = 10_000;
const JOIN = 3; // times the usual pause: a longer one is a gap

export class Device {
  /** `now` returns the Unix second of the service. */
  constructor(now) {
    this.now = now;
    this.device = "";
    this.board = new Board(0);
    this.chart = new Chart(this.board, { id: "c-device", title: "", unit: "", tell: short, floating: true, band: ["least", "most"], series: [
      { name: "mean", label: "mean", tone: "t1" }, { name: "least", label: "least", tone: "t1", told: true }, { name: "most", label: "greatest", tone: "t1", told: true }] });
    byId("device-chart").append(this.chart.element);
    byId("device-metric").addEventListener("change", () => this.draw());
    for (const radio of document.querySelectorAll("[name=device-range]")) radio.addEventListener("change", () => this.draw());
    byId("device-form").addEventListener("submit", (event) => event.preventDefault());
    byId("device-close").addEventListener("click", () => this.close());
    setInterval(() => this.shown && this.live(), 1_000);
    setInterval(() => this.shown && this.last(), LAST_MS);
    addEventListener("hashchange", () => this.restore());
  }

  get shown() {
    return this.device && !document.hidden;
  }

  get metric() {
    return byId("device-metric").value;
  }

  get span() {
    return Number(document.querySelector("[name=device-range]:checked").value);
  }

  /** Show the device that the address names, if it names one. */
  restore() {
    const given = new URLSearchParams(location.hash.slice(1));
    const range = document.querySelector(`[name=device-range][value="${Number(given.get("range"))}"]`);
    if (range) range.checked = true;
    const device = given.get("device") ?? "";
    if (device && device !== this.device) this.open(device, given.get("metric"));
  }

  /** Whether all values shown are of the last minutes, so that a shorter time shows more. */
  get young() {
    const values = this.board.columns.get("mean") ?? [];
    const first = values.findIndex((value) => value !== null);
    return this.span === 3600 && first >= 0 && (values.length - first) * this.step < 900;
  }

  choose(range) {
    document.querySelector(`[name=device-range][value="${range}"]`).checked = true;
    this.draw();
  }

  close() {
    this.device = "";
    byId("device").hidden = true;
    history.replaceState(null, "", location.pathname);
  }

  async open(device, metric = "") {
    this.device = device;
    byId("device-title").textContent = device;
    byId("device-metric").replaceChildren();
    byId("device-last").tBodies[0].replaceChildren();
    byId("device-chart").hidden = true;
    say(byId("device-note"), "Asking the database ..");
    say(byId("device-seen"), "");
    byId("device").hidden = false;
    byId("device").scrollIntoView({ block: "nearest" });
    if (await this.last(metric)) await this.draw();
    if (this.young) this.choose(900);
    byId("device").scrollIntoView({ block: "nearest" });
  }

  /** Show the last readings, and offer the metrics; whether there is one. */
  async last(metric) {
    const device = this.device;
    try {
      const found = await ask(`/devices/readings?device_id=${encodeURIComponent(device)}&limit=100`);
      if (device !== this.device) return false;
      const { readings, metrics, seen } = found;
      say(byId("device-seen"), seen ? `Seen ${moment(seen.last_seen)}; first seen ${moment(seen.first_seen)}.` : "Not seen since the service started.");
      byId("device-last").tBodies[0].replaceChildren(...readings.slice(0, 20).map((each) => make("tr", {}, make("td", {}, moment(each.ts)), make("td", {}, each.metric), make("td", { class: "num" }, short(each.value)))));
      this.offer(metrics, metric || this.metric || readings[0]?.metric);
      if (metric !== undefined) this.tell(found);
      if (!metrics.length) say(byId("device-note"), "The table has no reading of this device. Is the name correct?");
      return metrics.length > 0;
    } catch (error) {
      if (device === this.device) say(byId("device-note"), `Not available: ${error.message}.`);
      return false;
    }
  }

  offer(metrics, chosen) {
    const names = metrics.includes(chosen) || !chosen ? metrics : [chosen, ...metrics];
    const select = byId("device-metric");
    if (names.join("\n") !== [...select.options].map((each) => each.value).join("\n")) select.replaceChildren(...names.map((name) => make("option", {}, name)));
    if (chosen) select.value = chosen;
  }

  tell({ advice, buckets }) {
    const none = buckets && !buckets.length ? "This metric has no value in this time: choose a longer one. " : "";
    say(byId("device-note"), none + (advice ? `Questions about one device are slow in a large table: ${advice}.` : ""));
  }

  /** Ask for the whole curve. */
  async draw() {
    const { device, metric, span } = this;
    if (!metric) return;
    const step = STEPS_S[span];
    const to = (Math.floor(this.now() / step) + 1) * step;
    this.asked = to;
    history.replaceState(null, "", `#${new URLSearchParams({ device, metric, range: span })}`);
    const columns = { mean: [], least: [], most: [] };
    for (const column of Object.values(columns)) column.push(...Array(span / step).fill(null));
    const found = await this.ask(to - span, to, step);
    if (!found || device !== this.device || metric !== this.metric || span !== this.span) return;
    this.put(columns, to - span, step, found.buckets);
    this.tell(found);
    byId("device-chart").hidden = false;
    this.chart.element.querySelector("h3").replaceChildren(metric, " ", make("small", {}, `one point for ${step < 60 ? `${step} s` : step < 3600 ? `${step / 60} min` : step < 86400 ? `${step / 3600} h` : "1 day"}`));
    Object.assign(this.chart, { title: `${metric} of ${device}`, unit: "values" });
    this.step = step;
    this.board.replace(to - span, step, columns);
    this.join();
  }

  async ask(from, to, step) {
    this.asking = true;
    try {
      return await ask(`/devices/readings?${new URLSearchParams({ device_id: this.device, metric: this.metric, from, to, step })}`);
    } catch (error) {
      say(byId("device-note"), `Not available: ${error.message}.`);
      return null;
    } finally {
      this.asking = false;
    }
  }

  put(columns, first, step, buckets) {
    for (const [start, least, mean, most] of buckets) {
      const row = Math.round((start - first) / step);
      if (row < 0 || row >= columns.mean.length) continue;
      Object.entries({ mean: mean ?? most, least, most }).forEach(([name, value]) => (columns[name][row] = value));
    }
  }

  /** Values that come as often as usual are joined; after a longer pause there is a gap. */
  join() {
    const rows = this.chart.runs.call({ join: Infinity }, this.board.columns.get("mean")).flat();
    const pauses = rows.slice(1).map((row, at) => row - rows[at]).sort((a, b) => a - b);
    this.chart.join = JOIN * (pauses[pauses.length >> 1] ?? 1);
  }

  /** Ask for the newest points only, and move the curve. */
  async live() {
    const { board, device, metric, step } = this;
    const now = this.now();
    if (!board.rows || !metric || this.asking || now - (this.liveAt ?? 0) < Math.min(Math.max(STEPS_S[this.span], LIVE_S[0]), LIVE_S[1])) return;
    this.liveAt = now;
    const to = (Math.floor(now / step) + 1) * step;
    const from = board.last - step; // the last two may have grown
    if (board.span !== this.span || to - from > this.span) return this.draw();
    const found = await this.ask(from, to, step);
    if (!found || device !== this.device || metric !== this.metric || step !== this.step) return;
    const moved = Math.max(0, Math.round((to - step - board.last) / step));
    const columns = Object.fromEntries([...board.columns].map(([name, values]) => [name, [...values.slice(moved), ...Array(moved).fill(null)]]));
    const first = board.first + moved * step;
    this.put(columns, first, step, found.buckets);
    board.replace(first, step, columns);
    this.join();
    this.tell({ advice: found.advice, buckets: columns.mean.filter((value) => value !== null) });
  }
}
