// The charts of the service: which there are, when they show, and the ribbon of states.

import { Board, place } from "./board.js";
import { Chart } from "./charts.js";
import { byId, bytes, clock, duration, ms, short } from "./text.js";

const WIDTH_PX = 290; // of a chart, at least
const CURVES = [
  { id: "c-readings", title: "Readings", unit: "per second", tell: short, peaks: true, series: [
    { name: "received", label: "received", tone: "t1" }, { name: "committed", label: "stored", tone: "t2" },
    { name: "duplicate", label: "repeated", tone: "t5" }, { name: "rejected", label: "refused", tone: "t4" }] },
  { id: "c-commit", title: "Time to store", unit: "from receipt to commit", tell: ms, peaks: true, series: [
    { name: "commit_p99_ms", label: "99 % in", tone: "t5" }, { name: "commit_p50_ms", label: "half in", tone: "t1" }] },
  { id: "c-buffer", title: "Waiting", unit: "readings", tell: short, only: "memory", bound: "buffer_rows_max", series: [
    { name: "buffer_rows", label: "waiting", tone: "t1" }] },
  { id: "c-buffer", title: "Waiting", unit: "readings", tell: short, only: "journal", series: [
    { name: "buffer_rows", label: "waiting", tone: "t1" }, { name: "disk_rows", label: "on disk only", tone: "t6" }] },
  { id: "c-buffer", title: "Waiting in the processes", unit: "readings", tell: short, only: "stream", peaks: true, series: [
    { name: "held", label: "waiting", tone: "t1" }] },
  { id: "c-waiting", title: "Waiting in the stream", unit: "messages", tell: short, only: "stream", peaks: true, series: [
    { name: "stream_waiting", label: "not acknowledged", tone: "t6" }] },
  { id: "c-stream", title: "Stream", unit: "size on disk", tell: bytes, base: 1024, only: "stream", bound: "stream_bytes_max", series: [
    { name: "stream_bytes", label: "size", tone: "t6" }] },
  { id: "c-dead", title: "Dead letters", unit: "per second", tell: short, trouble: true, series: [
    { name: "dead_invalid", label: "invalid", tone: "t3" }, { name: "dead_refused_by_database", label: "refused", tone: "t4" },
    { name: "dead_retries_exhausted", label: "retries", tone: "t5" }, { name: "dead_drained", label: "at a stop", tone: "t6" }] },
  { id: "c-retries", title: "Retries", unit: "per second", tell: short, trouble: true, series: [
    { name: "retries", label: "failed", tone: "t4" }] },
  { id: "c-journal", title: "Journal", unit: "size on disk", tell: bytes, base: 1024, only: "journal", bound: "journal_bytes_max", series: [
    { name: "journal_bytes", label: "size", tone: "t6" }] },
  { id: "c-oldest", title: "Oldest that waits", unit: "age", tell: duration, least: 0.1, peaks: true, series: [
    { name: "oldest_s", label: "age", tone: "t5" }] },
  { id: "c-rows", title: "Size of a write", unit: "readings, mean", tell: short, peaks: true, series: [
    { name: "flush_rows", label: "readings", tone: "t6" }] },
  { id: "c-flush", title: "Time of a write", unit: "to the database, mean", tell: ms, peaks: true, series: [
    { name: "flush_ms", label: "time", tone: "t5" }] },
];
const STATES = {
  accepting: ["accepting", "database away"], slowed: ["slow", "slow"], on_hold: ["writes paused", "writes paused"],
  starting: ["starting", "starting"], full: ["full", "full"], disk_low: ["disk nearly full", "disk nearly full"], draining: ["stopping", "stopping"],
  broker_away: ["broker away", "broker away"],
};

export class Curves {
  /** `about` is what the history says of the service. */
  constructor(about) {
    this.about = about;
    this.board = new Board(about.seconds_kept);
    const level = (at) => (at ? about.levels[at] : null);
    this.charts = CURVES.filter(({ only }) => !only || only === about.buffer).map((curve) => {
      const bound = curve.bound && (() => about[curve.bound]);
      const chart = new Chart(this.board, { ...curve, bound, level });
      byId("curves").append(chart.element);
      return chart;
    });
    byId("unfold").addEventListener("click", (event) => {
      const folded = byId("service").classList.toggle("folded"); // on a phone only
      event.target.textContent = folded ? "Show charts" : "Hide charts";
      event.target.setAttribute("aria-expanded", !folded);
      this.draw();
    });
    this.board.onCursor = () => {
      clearTimeout(this.later);
      if (this.board.cursor !== null && document.activeElement?.matches("#curves canvas")) this.later = setTimeout(() => this.sayCursor(), 300);
    };
  }

  show(span) {
    this.board.span = span;
    this.draw();
  }

  append(first, columns) {
    this.board.append(first, columns);
    if (this.board.cursor !== null && this.board.cursor < this.board.begin) this.board.cursor = null;
  }

  /** The readings of the last minute: how many were received, rejected, and became dead letters, these also in the last
   *  ten seconds; and the failed writes. */
  lately() {
    const sum = (begin, seconds = 60) => [...this.board.columns].filter(([name]) => name.startsWith(begin))
      .flatMap(([, values]) => values.slice(-seconds)).reduce((all, one) => all + (one ?? 0), 0);
    return { received: sum("received"), rejected: sum("rejected"), dead: sum("dead_"), deadNow: sum("dead_", 10), retries: sum("retries") };
  }

  draw() {
    this.fold();
    this.board.draw();
    this.ribbon();
  }

  /** A chart of trouble shows only while there is some. */
  fold() {
    const quiet = [];
    for (const chart of this.charts) {
      chart.element.hidden = Boolean(chart.trouble) && !chart.series.some(({ name }) => this.some(name));
      if (chart.element.hidden) quiet.push(chart.title.toLowerCase());
    }
    byId("quiet").textContent = quiet.length ? `No ${quiet.join(" and no ")} in this time.` : "";
    if (this.some("level")) byId("quiet").textContent += " Shaded times: the bar at the top is not green.";
    place(byId("curves"), this.charts, WIDTH_PX, true);
  }

  some(name) {
    const { columns, begin, first } = this.board;
    return (columns.get(name) ?? []).slice(Math.max(0, begin - first)).some((value) => value > 0);
  }

  ribbon() {
    const { board, about } = this;
    const canvas = byId("ribbon");
    const width = canvas.clientWidth;
    const ratio = devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = 10 * ratio;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const seconds = {};
    const at = (row) => {
      const [state, level] = ["state", "level"].map((name) => board.at(name, board.begin + row));
      return state === null ? null : `${state} ${level}`;
    };
    for (let row = 0, end = 0; row < board.shown; row = end) {
      for (end = row + 1; end < board.shown && at(end) === at(row); ) end++;
      if (at(row) === null) continue;
      const [state, level] = at(row).split(" ").map(Number);
      const word = STATES[about.states[state]][Number(level > 0)];
      seconds[word] = (seconds[word] ?? 0) + end - row;
      pen.fillStyle = style.getPropertyValue(`--paint-${about.levels[level] ?? "off"}`);
      pen.fillRect((row / board.shown) * width, 0, Math.max(1, ((end - row) / board.shown) * width), 10);
    }
    const told = Object.entries(seconds).map(([word, time]) => `${word} ${duration(time)}`).join(", ");
    byId("ribbon-begin").textContent = clock(board.begin);
    canvas.setAttribute("aria-label", `States in the time shown: ${told}`);
    canvas.title = told;
  }

  sayCursor() {
    const shown = this.charts.filter((chart) => !chart.element.hidden);
    byId("cursor-said").textContent = `${clock(this.board.cursor)}. ${shown.map((chart) => chart.said).join("; ")}`;
  }
}
