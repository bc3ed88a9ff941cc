// The current figures in three groups: what flows, what is in trouble, how the machine does.

import { byId, bytes, count, make, ms, rough, short } from "./text.js";

const DAY_S = 86400, WEEK_S = 604800, YEAR_S = 31536000;
const GROUPS = [["flow", "Flow"], ["trouble", "Trouble"], ["machine", "Machine"]];
const lists = new Map();
const figures = new Map();

function group(id) {
  if (!lists.size) {
    for (const [name, title] of GROUPS) {
      lists.set(name, make("dl"));
      byId("figures").append(make("section", { class: "group", id: `g-${name}`, "aria-label": title }, make("h2", {}, title), lists.get(name)));
    }
    lists.get("flow").before(make("p", { id: "f-balance" }));
  }
  return lists.get(id);
}

function figure(where, id, title, text, note, tone = "") {
  let parts = figures.get(id);
  if (!parts) {
    parts = { value: make("b"), note: make("small"), box: make("div", { id: `f-${id}` }) };
    parts.box.append(make("dt", {}, title), make("dd", {}, parts.value, parts.note));
    group(where).append(parts.box);
    figures.set(id, parts);
  }
  if (parts.value.textContent !== text) parts.value.textContent = text;
  if (parts.note.textContent !== note) parts.note.textContent = note;
  parts.box.dataset.tone = tone;
}

/** The tone of what fills: how much of it, and when it will be full. */
const filling = (size, most, fullInS) => (size >= 0.7 * most || (fullInS > 0 && fullInS < DAY_S) ? "warn" : "");

/** Show the figures of an event. `value` gives the newest value of a column, `lately` has the sums of the last minute. */
export function showFigures(news, about, value, lately) {
  showFlow(news, about, value);
  showTrouble(news, about, value, lately);
  showMachine(news, about, value);
}

function showFlow({ sum }, about, value) {
  const fill = value("buffer_used_pct");
  figure("flow", "received", "Received", `${short(value("received"))}/s`, `${short(sum.received)} in all`);
  figure("flow", "committed", "Stored", `${short(value("committed"))}/s`,
    sum.duplicate ? `${short(sum.duplicate)} repeated` : `${short(sum.committed)} in all`);
  const inStream = value("stream_waiting");
  if (about.buffer === "stream") figure("flow", "waiting", "Waiting", short(value("held")),
    inStream ? `${short(inStream)} in stream` : inStream === null ? "stream not known" : "none in stream", fill > 80 ? "bad" : fill > 30 ? "warn" : "");
  else figure("flow", "waiting", "Waiting", short(value("held")),
    (value("held") ? `oldest ${value("oldest_s") < 1 ? "< 1 s" : rough(value("oldest_s"))}` : "none") + (fill >= 1 ? `, ${Math.round(fill)}\u00a0%` : ""), fill > 80 ? "bad" : fill > 30 ? "warn" : "");
  const off = value("imbalance");
  const lost = off || sum.dropped;
  byId("f-balance").dataset.tone = lost ? "bad" : "";
  byId("f-balance").textContent = sum.dropped ? `${count(sum.dropped)} readings are lost.`
    : off ? `${count(off)} readings are not accounted for.`
    : `Every reading is accounted for.${[
      [sum.rejected, "refused"], [sum.recovered, "from the journal"], [sum.replayed, "replayed"],
    ].map(([number, what]) => (number ? ` ${count(number)} ${what}.` : "")).join("")}`;
}

function showTrouble({ sum, ready }, about, value, lately) {
  const refused = Object.values(ready.refused_60s ?? {}).reduce((a, b) => a + b, 0);
  const live = value("dlq_readings");
  const dead = Object.values(sum.dead).reduce((a, b) => a + b, 0);
  const size = sum.dlq && sum.dlq[0] > about.dlq_bytes_max / 2 ? `${bytes(sum.dlq[0])} of ${bytes(about.dlq_bytes_max)}` : "";
  // Without a broker no gateway is heard, and what it refuses is not known.
  const heard = !ready.instances || ready.instances.some((each) => each.role === "gateway" && each.runs);
  figure("trouble", "rejected", "Refused", heard ? short(refused) : "–", refused ? "posts in 1 min" : heard ? "none in 1 min" : "not known", refused ? "warn" : "dim");
  figure("trouble", "dead", "Dead letters", short(live),
    live ? size || `oldest ${rough(sum.dlq?.[1])}` : dead ? `${short(dead)} since the start` : "none", live ? "warn" : "dim");
  const retries = Math.round(lately.retries);
  figure("trouble", "retries", "Retries", short(retries), retries ? "writes in 1 min" : "none", retries ? "warn" : "dim");
}

function showMachine({ sum, ready }, about, value) {
  if (about.buffer === "journal") {
    const there = value("disk_rows") ? `${short(value("disk_rows"))} only there` : `of ${bytes(about.journal_bytes_max)}`;
    figure("machine", "journal", "Journal", bytes(value("journal_bytes")), sum.damaged ? `${count(sum.damaged)} damaged` : there, sum.damaged ? "bad" : filling(value("journal_bytes"), about.journal_bytes_max, ready.full_in_s?.journal));
  }
  if (about.buffer === "stream") {
    const most = sum.broker?.stream_bytes_max ?? about.stream_bytes_max;
    figure("machine", "stream", "Stream", bytes(value("stream_bytes")), `of ${bytes(most)}`, filling(value("stream_bytes"), most, ready.full_in_s?.stream));
  }
  const table = sum.broker;
  if (table?.partitions) {
    const full = table.table_full_in_seconds;
    figure("machine", "table", "Table", bytes(table.table_bytes), full > 0 && full < YEAR_S ? `disk full in ${rough(full)}` : `${short(table.partitions)} partitions`, full < WEEK_S ? "warn" : "");
  }
  figure("machine", "commit", "Time to store", ms(value("commit_p99_ms")),
    value("commit_p50_ms") === null ? "none now" : `half in ${ms(value("commit_p50_ms"))}`);
  if (!table?.partitions) figure("machine", "flush", "Rows in a write", short(value("flush_rows")), value("flush_ms") === null ? "none now" : `takes ${ms(value("flush_ms"))}`);
}
