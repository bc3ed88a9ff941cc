// One device: a small chart for each of its metrics, live, and its last readings. The address keeps what is shown.

import { Board, place } from "./board.js";
import { Chart } from "./charts.js";
import { ask, byId, make, measured, moment, say } from "./text.js";

const STEPS_S = [3, 12, 60, 300, 3600, 7200, 21600, 86400, 604800, 2592000]; // whole hours can come from rollups
const POINTS_MAX = 400; // of a curve
const ALL_S = 1990 * 2592000; // all times: the service gives at most 2,000 points
const LIVE_S = [3, 60]; // asks again after a step, but not more and not less often
const LAST_MS = 10_000;
const AGAIN = 20; // steps that are asked again, since readings come late
const JOIN = 3; // times the usual pause: a longer one is a gap
const METRICS = 12; // that are shown at first
const WIDTH_PX = 320; // of a chart, at least

const stepOf = (span) => STEPS_S.find((step) => span / step <= POINTS_MAX) ?? STEPS_S.at(-1);
const namesOf = (metric) => ["mean", "least", "most"].map((part) => `${part} ${metric}`);

export class Device {
  /** `now` returns the Unix second of the service; `mark` hears which device is shown, and what is known
   *  of it; `held` returns why writes are paused. */
  constructor(now, mark, held) {
    Object.assign(this, { now, mark, held, why: "", device: "", chosen: false, metrics: [], charts: [], most: METRICS, liveAt: 0 });
    this.board = new Board(0);
    this.board.rowsMin = 2;
    for (const radio of document.querySelectorAll("[name=device-range]")) radio.addEventListener("change", () => this.choose());
    byId("device-form").addEventListener("submit", (event) => event.preventDefault());
    byId("device-close").addEventListener("click", () => this.close());
    byId("device-more").addEventListener("click", () => {
      this.most = Infinity;
      this.offer(this.all);
    });
    new ResizeObserver(() => this.place()).observe(byId("device-charts"));
    setInterval(() => this.shown && this.live(), 1_000);
    setInterval(() => this.shown && this.last(), LAST_MS);
    addEventListener("hashchange", () => this.restore());
  }

  get shown() {
    return this.device && !document.hidden;
  }

  /** The seconds that the reader wants to see. */
  get span() {
    return Number(document.querySelector("[name=device-range]:checked").value) || ALL_S;
  }

  /** Show the device that the address names, if it names one. */
  restore() {
    const given = new URLSearchParams(location.hash.slice(1));
    const range = given.has("range") && document.querySelector(`[name=device-range][value="${Number(given.get("range"))}"]`);
    if (range) range.checked = true;
    const device = given.get("device") ?? "";
    if (device && device !== this.device) this.open(device);
  }

  /** Keep in the address what the reader has chosen. */
  keep() {
    this.chosen = true;
    const range = this.span === ALL_S ? 0 : this.span;
    history.replaceState(null, "", `#${new URLSearchParams({ device: this.device, range })}`);
  }

  choose() {
    this.keep();
    this.draw();
  }

  close() {
    this.device = "";
    this.chosen = true;
    byId("device").hidden = true;
    this.mark("");
    history.replaceState(null, "", location.pathname);
  }

  /** Show a device. `quietly`: the reader has not asked for it. */
  async open(device, quietly = false) {
    Object.assign(this, { device, all: [], most: METRICS });
    if (quietly) this.chosen = true;
    else this.keep();
    this.clear([]);
    byId("device-title").textContent = device;
    byId("device-last").tBodies[0].replaceChildren();
    this.known(0);
    say(byId("device-note"), "Asking the database ..");
    say(byId("device-seen"), "");
    byId("device").hidden = false;
    this.mark(device);
    await this.last();
    if (!quietly) byId("device").scrollIntoView({ block: "nearest" });
  }

  /** Show the last readings. Other metrics than before are drawn. */
  async last() {
    const { device } = this;
    try {
      const { readings, metrics, seen } = await ask(`/devices/readings?device_id=${encodeURIComponent(device)}&limit=100`);
      if (device !== this.device) return;
      this.mark(device, { device_id: device, seen, last: readings[0] });
      const latest = seen?.last_seen ?? readings[0]?.ts;
      say(byId("device-seen"), latest ? `Last seen ${moment(latest)}.${seen ? ` First seen ${moment(seen.first_seen)}, since the service started.` : ""}` : "");
      byId("device-last").tBodies[0].replaceChildren(...readings.slice(0, 20).map((each) => make("tr", {}, make("td", {}, moment(each.ts)), make("td", {}, each.metric), make("td", { class: "num" }, measured(each.value)))));
      if (metrics.length) await this.offer(metrics);
      else say(byId("device-note"), "The table has no reading of this device. Is the name correct?");
    } catch (error) {
      if (device === this.device) this.fail(error);
    }
  }

  /** Say why the database does not tell. What is shown is of before: its curves are dimmed. */
  fail(error) {
    this.board.stale = this.knownAt;
    this.why = `Not available: ${this.held() || error.message}.${this.knownAt ? ` The values are as of ${moment(new Date(this.knownAt * 1000).toISOString())}; the time since then is shaded.` : ""}`;
    say(byId("device-note"), this.why);
  }

  /** The database told what is shown at a Unix second; 0: it has told nothing yet. */
  known(second) {
    this.knownAt = second;
    this.board.stale = 0;
    this.why = "";
  }

  async offer(metrics) {
    this.all = metrics;
    const shown = metrics.slice(0, this.most);
    byId("device-more").hidden = shown.length === metrics.length;
    byId("device-more").textContent = `Show all ${metrics.length} metrics`;
    if (shown.join("\n") === this.metrics.join("\n") && this.board.rows) return;
    this.clear(shown);
    await this.draw();
  }

  /** Make an empty chart for each metric. */
  clear(metrics) {
    this.turn = null;
    this.metrics = metrics;
    Object.assign(this.board, { columns: new Map(), left: 0 });
    this.board.charts = [];
    this.charts = metrics.map((metric) => {
      const [mean, ...band] = namesOf(metric);
      const chart = new Chart(this.board, { id: "", title: metric, unit: "", tell: measured, floating: true, band, series: [{ name: mean, label: "mean", tone: "t1" }] });
      chart.element.hidden = true;
      return chart;
    });
    byId("device-charts").replaceChildren(...this.charts.map((chart) => chart.element));
  }

  place() {
    place(byId("device-charts"), this.charts, WIDTH_PX);
  }

  /** Ask for whole curves. They begin with the first reading: if that is late in the time asked for, with shorter steps. */
  async draw() {
    if (!this.metrics.length) return;
    const turn = (this.turn = Symbol("turn"));
    for (let span = this.span; ; ) {
      const step = stepOf(span);
      const rows = Math.ceil(span / step);
      const end = (Math.floor(this.now() / step) + 1) * step;
      const begin = end - rows * step;
      const found = await this.ask(begin, end, step);
      if (turn !== this.turn || !found) return;
      const firsts = found.filter((buckets) => buckets.length).map((buckets) => buckets[0][0]);
      const covered = end - Math.min(...firsts, end);
      if (covered && covered < span / 4 && step > STEPS_S[0]) {
        span = Math.max(covered, 60);
        continue;
      }
      this.put(found, end - Math.max(covered, step), end, step);
      return;
    }
  }

  /** The buckets of each metric in a time, or null. */
  async ask(from, to, step) {
    this.asking = true;
    try {
      const found = [];
      for (const metric of this.metrics) found.push((await ask(`/devices/readings?${new URLSearchParams({ device_id: this.device, metric, from, to, step })}`)).buckets);
      this.known(this.now());
      return found;
    } catch (error) {
      this.fail(error);
      return null;
    } finally {
      this.asking = false;
    }
  }

  /** Show curves from `begin` on; what the board has already of this time stays where nothing is found. */
  put(found, begin, end, step) {
    const { board } = this;
    const rows = Math.round((end - begin) / step);
    const moved = Math.round((begin - board.first) / step);
    const columns = new Map();
    this.metrics.forEach((metric, at) => {
      const [mean, least, most] = namesOf(metric).map((name) => {
        const kept = board.step === step && board.rows ? board.columns.get(name).slice(Math.max(0, moved)) : [];
        const column = [...kept, ...Array(Math.max(0, rows - kept.length)).fill(null)];
        columns.set(name, column);
        return column;
      });
      for (const [start, low, middle, high] of found[at]) {
        const row = Math.round((start - begin) / step);
        if (row >= 0 && row < rows) [mean[row], least[row], most[row]] = [middle ?? high, low, high];
      }
      this.charts[at].element.hidden = mean.every((value) => value === null);
      this.join(this.charts[at], mean);
    });
    const empty = this.charts.filter((chart) => chart.element.hidden).map((chart) => chart.title);
    const none = empty.length === this.charts.length ? "No reading in this time" : `No value in this time: ${empty.join(", ")}`;
    say(byId("device-note"), this.why || (empty.length ? `${none}. Choose a longer time.` : ""));
    this.place();
    board.replace(begin, step, columns);
  }

  /** Values that come as often as usual are joined; after a longer pause there is a gap. */
  join(chart, values) {
    const rows = values.flatMap((value, row) => (value === null ? [] : [row]));
    const pauses = rows.slice(1).map((row, at) => row - rows[at]).sort((a, b) => a - b);
    chart.join = JOIN * (pauses[pauses.length >> 1] ?? 1);
  }

  /** Ask for the newest points only, and move the curves. */
  async live() {
    const { board, metrics, turn } = this;
    const { step } = board;
    const now = this.now();
    const pause = Math.min(Math.max(step, LIVE_S[0], metrics.length / 2), LIVE_S[1]);
    if (!metrics.length || !turn || this.asking || now - this.liveAt < pause) return;
    this.liveAt = now;
    const end = (Math.floor(now / step) + 1) * step;
    const from = Math.max(board.first, Math.min(board.stale || Infinity, board.last) - AGAIN * step);
    if (!board.rows || end - board.first > 2 * POINTS_MAX * step || this.charts.every((chart) => chart.element.hidden)) return this.draw();
    const found = await this.ask(from, end, step);
    if (turn === this.turn) this.put(found ?? metrics.map(() => []), Math.max(board.first, end - Math.ceil(this.span / step) * step), end, step);
  }
}
