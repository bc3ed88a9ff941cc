// The processes of `up`, each with its state and its load, and what waits in the stream between them.

import { byId, bytes, count, duration, make, moment, short } from "./text.js";

// By state, for a gateway and for another process: only a gateway takes posts.
const WORDS = {
  accepting: ["accepting", "runs"], slowed: ["slow: posts wait", "slow"], on_hold: ["writes paused", "writes paused"],
  starting: ["starting: refuses posts", "starting"], full: ["full: refuses posts", "full"], draining: ["stopping: refuses posts", "stopping"],
  disk_low: ["disk nearly full: refuses posts", "disk nearly full"], broker_away: ["broker away: refuses posts", "broker away"],
};
const PLANNED = ["starting", "draining"];
const NAMES = [...byId("instance-list").tHead.rows[0].cells].map((each) => each.textContent);
const rows = new Map();

/** Show the processes that the state names. */
export function showInstances({ ready, sum }, about) {
  byId("instances").hidden = false;
  const body = byId("instance-list").tBodies[0];
  const gone = new Set(rows.keys());
  for (const each of ready.instances) {
    gone.delete(each.instance);
    if (!rows.has(each.instance)) {
      const cells = Array.from({ length: 7 }, (_, at) => make("td", { class: at > 1 && at < 6 ? "num" : at === 1 ? "state" : false, "data-label": NAMES[at] }));
      rows.set(each.instance, cells);
      make("tr", {}, ...cells);
    }
    fill(rows.get(each.instance), each, about);
  }
  const wanted = ready.instances.map((each) => rows.get(each.instance)[0].parentElement);
  if (wanted.some((row, at) => body.rows[at] !== row)) body.append(...wanted); // in the order of their names
  for (const name of gone) {
    rows.get(name)[0].parentElement.remove();
    rows.delete(name);
  }
  const note = streamNote(sum.broker);
  if (byId("stream-note").textContent !== note) byId("stream-note").textContent = note;
}

function fill(cells, each, about) {
  const dash = (text) => (each.runs ? text : "–");
  const version = each.version === about.version ? "" : `, version ${each.version}`;
  const texts = [
    each.instance, stateOf(each), dash(short(each.readings_per_s)), dash(short(each.held)),
    dash(`${Math.round(each.cpu * 100)} %`), dash(each.memory_bytes ? bytes(each.memory_bytes) : "–"),
    dash(`${moment(each.started)} (pid ${each.pid}${version})`),
  ];
  texts.forEach((text, at) => {
    if (cells[at].textContent !== text) cells[at].textContent = text;
  });
  cells[1].dataset.level = levelOf(each);
  cells[1].title = each.reason;
}

function stateOf({ runs, role, state, refusing, cause, reason, silent_s }) {
  if (runs && PLANNED.includes(state) && (!cause || cause === state)) return WORDS[state][1];
  if (!runs) return `has not reported for ${duration(silent_s)}`;
  if (reason) return role === "gateway" && refusing ? `refuses posts: ${reason}` : reason;
  return (WORDS[state] ?? [state, state])[Number(role !== "gateway")];
}

function levelOf({ runs, role, refusing, state, cause }) {
  if (runs && PLANNED.includes(state) && (!cause || cause === state)) return "off"; // it is replaced
  if (!runs || (refusing && role === "gateway")) return "bad";
  return state !== "accepting" || cause ? "warn" : "ok";
}

const total = (value) => (value && typeof value === "object" ? Object.values(value).reduce((a, b) => a + b, 0) : value);

/** What waits between gateways and writers, in one sentence for each fact that is known. */
function streamNote(broker) {
  if (!broker) return "Nothing is known of the stream yet.";
  const pending = total(broker.consumer_pending);
  const delivered = total(broker.consumer_ack_pending);
  const again = total(broker.consumer_redelivered);
  const told = [];
  if (pending != null) told.push(`In the stream ${count(pending)} messages wait for a writer, and ${count(delivered ?? 0)} are with one`);
  if (again) told.push(`${count(again)} of these were delivered again`);
  if (broker.redeliveries_total) told.push(`${count(broker.redeliveries_total)} deliveries were repeated so far`);
  if (broker.stream_oldest_age_seconds) told.push(`the oldest one is ${duration(broker.stream_oldest_age_seconds)} old`);
  const missing = Math.max(broker.stream_skipped_total ?? 0, broker.stream_removed ?? 0);
  if (missing) told.push(`${count(missing)} messages are missing in the stream: the runbook says more`);
  if (broker.broker_up === 0) told.push("a process has no connection to the broker");
  return told.length ? `${told.join("; ")}.` : "";
}
