// The page: its figures and charts, and the data for each part.

import { Board, Chart } from "./charts.js";
import { Devices } from "./devices.js";
import { Feed } from "./feed.js";
import { Letters } from "./letters.js";
import { level, showLink, showState } from "./state.js";
import { Tail } from "./tail.js";
import { byId, bytes, clock, count, duration, make, ms, short } from "./text.js";

const rate = (value) => short(value);
const CURVES = [
  { id: "c-readings", title: "Readings", unit: "per second", tell: rate, series: [
    { name: "received", label: "received", tone: "t1" }, { name: "committed", label: "committed", tone: "t2" },
    { name: "duplicate", label: "duplicate", tone: "t5" }, { name: "rejected", label: "rejected", tone: "t4" }] },
  { id: "c-commit", title: "Commit latency", unit: "from receipt to commit", tell: ms, series: [
    { name: "commit_p99_ms", label: "p99", tone: "t3" }, { name: "commit_p50_ms", label: "p50", tone: "t1" }] },
  { id: "c-buffer", title: "Buffer", unit: "readings", tell: short, only: "memory", bound: () => about.buffer_rows_max, series: [
    { name: "buffer_rows", label: "held", tone: "t1" }] },
  { id: "c-buffer", title: "Buffer", unit: "readings", tell: short, only: "journal", series: [
    { name: "buffer_rows", label: "held", tone: "t1" }, { name: "disk_rows", label: "on disk only", tone: "t6" }] },
  { id: "c-journal", title: "Journal", unit: "size on disk", tell: bytes, base: 1024, only: "journal", bound: () => about.journal_bytes_max, series: [
    { name: "journal_bytes", label: "size", tone: "t6" }] },
  { id: "c-oldest", title: "Oldest in the buffer", unit: "age", tell: duration, least: 0.1, series: [
    { name: "oldest_s", label: "age", tone: "t3" }] },
  { id: "c-rows", title: "Flush size", unit: "readings per batch, mean", tell: short, series: [
    { name: "flush_rows", label: "readings", tone: "t6" }] },
  { id: "c-flush", title: "Flush time", unit: "a write to the database, mean", tell: ms, series: [
    { name: "flush_ms", label: "time", tone: "t5" }] },
  { id: "c-dead", title: "Dead letters", unit: "readings per second, by reason", tell: rate, series: [
    { name: "dead_invalid", label: "invalid", tone: "t3" }, { name: "dead_refused_by_database", label: "refused", tone: "t4" },
    { name: "dead_retries_exhausted", label: "retries", tone: "t5" }, { name: "dead_drained", label: "drained", tone: "t6" }] },
  { id: "c-retries", title: "Retries", unit: "failed writes per second", tell: rate, series: [
    { name: "retries", label: "failed", tone: "t4" }] },
];

let about = null; // what the history says of the service
let newest = {}; // the newest row, by column
let board = null;

const value = (name) => newest[name] ?? null;

const figures = new Map();
function figure(id, title, text, note = "", tone = "") {
  let parts = figures.get(id);
  if (!parts) {
    parts = { value: make("b"), note: make("small"), box: make("div", { id: `f-${id}` }) };
    parts.box.append(make("dt", {}, title), make("dd", {}, parts.value, parts.note));
    byId("figures").append(parts.box);
    figures.set(id, parts);
  }
  if (parts.value.textContent !== text) parts.value.textContent = text;
  if (parts.note.textContent !== note) parts.note.textContent = note;
  parts.box.dataset.tone = tone;
}

function showFigures(news) {
  const { sum } = news;
  const dead = Object.values(sum.dead).reduce((a, b) => a + b, 0);
  const fill = value("buffer_used_pct");
  figure("received", "Received", `${short(value("received"))}/s`, `${count(sum.received)} readings`);
  figure("committed", "Committed", `${short(value("committed"))}/s`, `${count(sum.committed)} rows`);
  figure("duplicate", "Duplicate", `${short(value("duplicate"))}/s`, `${count(sum.duplicate)} readings`);
  figure("rejected", "Rejected", `${short(value("rejected"))}/s`, `${count(sum.rejected)} readings`, value("rejected") ? "warn" : "");
  figure("commit", "Commit latency", ms(value("commit_p99_ms")), `p99, p50 ${ms(value("commit_p50_ms"))}`);
  figure("flush", "Mean batch", short(value("flush_rows")), `rows in ${ms(value("flush_ms"))}`);
  figure("buffer", "Buffer", `${fill && fill < 10 ? fill.toFixed(1) : Math.round(fill)} %`, value("buffer_rows") ? `oldest ${duration(value("oldest_s"))}` : "empty", fill > 80 ? "bad" : fill > 30 ? "warn" : "");
  figure("retries", "Retries", `${short(value("retries"))}/s`, "failed writes", value("retries") ? "warn" : "");
  figure("dead", "Dead letters", count(value("dlq_readings")), value("dlq_readings") ? `oldest ${duration(sum.dlq?.[1])}` : `${count(dead)} since the start`, value("dlq_readings") ? "warn" : "");
  if (about.buffer === "journal") showJournal(sum);
  if (sum.recovered || sum.replayed) figure("back", "Came back", count(sum.recovered + sum.replayed), `${short(sum.recovered)} recovered, ${short(sum.replayed)} replayed`);
  const off = value("imbalance");
  figure("balance", "Balance", off === 0 ? "correct" : `off by ${count(off)}`, sum.dropped ? `${count(sum.dropped)} lost` : "nothing lost", off || sum.dropped ? "bad" : "ok");
}

function showJournal({ damaged }) {
  const there = value("disk_rows") ? `${short(value("disk_rows"))} only on disk` : `of ${bytes(about.journal_bytes_max)}`;
  figure("journal", "Journal", bytes(value("journal_bytes")), damaged ? `${count(damaged)} damaged` : there, damaged ? "bad" : "");
}

function drawRibbon() {
  const canvas = byId("ribbon");
  const width = canvas.clientWidth;
  const ratio = devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = 10 * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const seconds = {};
  const stateAt = (at) => about.states[board.at("state", board.last - board.span + 1 + at)];
  for (let at = 0, end = 0; at < board.span; at = end) {
    const state = stateAt(at);
    for (end = at + 1; end < board.span && stateAt(end) === state; ) end++;
    if (!state) continue;
    seconds[state] = (seconds[state] ?? 0) + end - at;
    pen.fillStyle = style.getPropertyValue(`--paint-${level(state)}`);
    pen.fillRect((at / board.span) * width, 0, Math.max(1, ((end - at) / board.span) * width), 10);
  }
  const told = Object.entries(seconds).map(([state, time]) => `${state.replace("_", " ")} ${duration(time)}`);
  canvas.setAttribute("aria-label", `States in the time shown: ${told.join(", ")}`);
  canvas.title = told.join(", ");
}

function addCurve(curve) {
  const trouble = (state) => {
    const its = level(about.states[state]);
    return its === "bad" || its === "warn" ? its : null;
  };
  const chart = new Chart(board, { ...curve, level: trouble });
  byId("curves").append(chart.element);
}

function onHistory(history) {
  about = history;
  byId("version").textContent = history.version;
  byId("foot").textContent = `This process started at ${clock(Date.parse(history.started) / 1000)}. The page keeps ${duration(history.seconds_kept).replace(" 0 s", "")}.`;
  if (!board) {
    board = new Board(history.seconds_kept);
    for (const curve of CURVES) if (!curve.only || curve.only === about.buffer) addCurve(curve);
    const few = history.columns.state.length < 300; // a young service: its first minutes in full
    document.querySelector(`[name=range][value="${few ? 300 : 900}"]`).checked = true;
    board.span = few ? 300 : 900;
    board.onCursor = () => {
      clearTimeout(sayLater);
      if (board.cursor !== null && document.activeElement?.matches("#curves canvas")) sayLater = setTimeout(sayCursor, 300);
    };
  }
  board.append(history.first, history.columns);
  feed.last = Math.max(feed.last, board.rows ? board.last : 0);
  board.draw();
}

let sayLater = 0;
function sayCursor() {
  const said = board.charts.map((chart) => chart.said).join("; ");
  byId("cursor-said").textContent = `${clock(board.cursor)}. ${said}`;
}

function onNews(event) {
  newest = Object.fromEntries(about.order.map((name, at) => [name, event.v[at]]));
  board.append(event.t, Object.fromEntries(Object.entries(newest).map(([name, one]) => [name, [one]])));
  showState(event, about, value);
  showFigures(event);
  letters.hear(newest.dlq_readings);
  if (board.cursor === null || board.cursor < board.last - board.span + 1) board.cursor = null;
  board.draw();
  drawRibbon();
  document.title = `${event.ready.state === "accepting" ? "" : `${event.ready.state.replace("_", " ")} – `}iot-ingest`;
}

const devices = new Devices();
const letters = new Letters();
const feed = new Feed({ history: onHistory, news: onNews, tail: (event) => tail.hear(event), link: showLink });
const tail = new Tail(feed, (device) => devices.lookUp(device));

for (const radio of document.querySelectorAll("[name=range]")) {
  radio.addEventListener("change", () => board && (board.show(Number(radio.value)), drawRibbon()));
}

// Colours: those of the system, or those that the user chose here.
const THEMES = ["auto", "light", "dark"];
const theme = byId("theme");
function paint(chosen) {
  if (chosen === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  theme.textContent = chosen[0].toUpperCase() + chosen.slice(1);
  theme.setAttribute("aria-label", `Colours: ${theme.textContent}`);
  theme.dataset.chosen = chosen;
  board?.draw();
  if (board) drawRibbon();
}
theme.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(theme.dataset.chosen) + 1) % THEMES.length];
  localStorage.setItem("theme", next);
  paint(next);
});
paint(THEMES.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "auto");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(theme.dataset.chosen));

feed.open();
devices.load();
letters.load();
