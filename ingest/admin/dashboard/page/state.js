// The state of the service as text, with its cause and what to do.

import { act, byId, bytes, count, duration, make, mayAct, moment, rough, say, short, typed } from "./text.js";

const WORDS = {
  accepting: "Accepting", slowed: "Slow: posts wait for space", starting: "Starting: posts are refused", draining: "Stopping: posts are refused",
  on_hold: "Writes are paused, readings are kept", full: "Full: posts are refused", disk_low: "The disk is nearly full: posts are refused",
  broker_away: "The broker is away: posts are refused",
};
const TROUBLES = {
  invalid_full: "Posts with an invalid item are refused", sender_share_used: "Whole posts of a sender are refused",
  writes_fail: "No write goes through, readings are kept", behind: "Readings wait to be written",
  sender_not_stored: "Of a sender nothing is stored",
};
const FULL = { journal: "Journal", stream: "Stream", dead_letters: "Space for dead letters", disk: "Disk" };
const WEEK_S = 604800;
const EVENTS = 60; // a minute of them
const STRAY = ["not_found", "method_not_allowed"]; // requests of nobody's devices
const MANY = 0.1; // of the readings of the last minute

const forecasts = new Map();

/** Make the forecasts of an event steady: of each the median of the last minute. */
export function steady(fullInS) {
  for (const [what, seconds] of Object.entries(fullInS ?? {})) {
    const lately = seconds > 0 ? [...(forecasts.get(what) ?? []), seconds].slice(-EVENTS) : [];
    forecasts.set(what, lately);
    if (lately.length) fullInS[what] = lately.toSorted((one, other) => one - other)[(lately.length - 1) >> 1];
  }
}

/** Why writes are paused, if they are. */
export const heldBy = ({ state, reason }) => (state === "on_hold" ? reason.replace(/^(the database refuses|writes are paused): /, "") : "");

const capital = (text) => text && text[0].toUpperCase() + text.slice(1);
const broken = ({ cause, reason }) => cause === "journal_broken" || reason.includes("the journal cannot be written");
const isAway = ({ cause, reason }) => (cause === undefined ? /database (is away|does not answer)/.test(reason) : cause === "unreachable");

/** What the service counts as no trouble of its own, but a person should see: a level, word, text, next step and section
 *  of the runbook. `lately` has the readings of the last minute. */
function ofSenders({ level, ready }, lately) {
  const codes = Object.entries(ready.refused_60s ?? {}).filter(([code, number]) => number && !STRAY.includes(code));
  if (level !== "ok" || !lately) return null;
  if (codes.length && !lately.received) {
    const told = codes.map(([code, number]) => `${count(number)} with ${code === "unauthorized" ? "401 " : ""}\`${code}\``);
    const section = ready.refused_60s.unauthorized ? "ingesttokensrefused" : "ingestreadingsrejected";
    return ["warn", "All posts are refused", `Posts arrive, and all are refused. In the last minute: ${told.join(", ")}.`, "The refused posts below say who sends them.", section];
  }
  const many = (number) => number > MANY * lately.received;
  const told = (number, what) => `${Math.round((100 * number) / lately.received)}\u00a0% of the readings of the last minute ${what}.`;
  if (many(lately.rejected)) return ["warn", "Many readings are refused", told(lately.rejected, "were refused, and are not kept"), "The refused posts below say who sends them.", "ingestreadingsrejected"];
  if (many(lately.dead)) return ["warn", "Many readings become dead letters", told(lately.dead, "became dead letters"), `\`${typed.run} dlq stats\` counts them by reason.`, "ingestdeadlettersmany"];
  return null;
}

/** Show the state. `news` is an event of the feed, `about` the start of the history. Returns a
 *  title. */
export function showState(news, about, value, lately) {
  const senders = ofSenders(news, lately);
  const level = senders?.[0] ?? news.level;
  const { state, since, cause, cause_since, runbook } = news.ready;
  const away = isAway(news.ready);
  const word = senders?.[1] ?? wordOf(news.ready, away);
  byId("state").dataset.level = level;
  say(byId("state-word"), word);
  say(byId("state-text"), senders?.[2] ?? sentence(news, about, value, away));
  say(byId("state-todo"), senders?.[3] ?? todo(news, about, value, away));
  showMore(news.ready, about.runbook && (senders?.[4] ?? runbook), lately?.deadNow === 0);
  announce(`${word}. ${byId("state-todo").textContent}`, `${state}${cause ?? away}${senders?.[1]}`);
  const begin = cause_since ?? since;
  const tellsTime = state === "accepting" && !away && / for \d/.test(news.ready.reason);
  byId("state-since").textContent = senders || tellsTime ? "" : `since ${moment(begin)} (${duration(Math.round((Date.now() - Date.parse(begin)) / 1000))})`;
  byId("try-now").hidden = !mayAct || !(state === "on_hold" || away);
  say(byId("try-now"), about.releases ? `Try now, only ${about.releases}` : "Try now");
  return level === "ok" ? "" : word.split(/[:,]/)[level === "bad" && word.includes(":") ? 1 : 0].trim();
}

function wordOf(ready, away) {
  if (ready.state === "disk_low" && broken(ready)) return "The journal cannot be written: posts are refused";
  if (away && ready.state === "accepting") return "The database is away, readings are kept";
  const word = (ready.state === "accepting" && TROUBLES[ready.cause]) || WORDS[ready.state] || ready.state;
  const takes = ready.instances?.some((each) => each.role === "gateway" && each.runs && !each.refusing);
  return takes ? word.replace("posts are refused", "some posts are refused") : word;
}

/** The number of readings that wait, and where they are. */
function kept(about, value) {
  const held = count(value("held"));
  if (about.buffer === "stream") return `${held} readings wait in the processes, and ${count(value("stream_waiting"))} messages in the stream`;
  if (about.buffer !== "journal") return `${held} of ${count(about.buffer_rows_max)} readings are kept`;
  const onDisk = value("disk_rows") ? `, ${count(value("disk_rows"))} of them on the disk only` : "";
  return `${held} readings are kept${onDisk} (${short(value("buffer_used_pct"))}\u00a0% of the journal)`;
}

const said = (news) => news.said.replaceAll("`", "'").replace(/\[Errno \d+\] /g, "") || "no more is known";

function sentence(news, about, value, away) {
  const { state, reason, cause } = news.ready;
  if (cause === "dead_letters_full" || reason.includes("dead_letters_full")) return `The space for dead letters is full: ${bytes(news.sum.dlq?.[0])} of ${bytes(about.dlq_bytes_max)}. ${kept(about, value)}. Nothing is lost.`;
  if (state === "on_hold") return `${capital(heldBy(news.ready))}: ${said(news)}. ${kept(about, value)}. Nothing is lost.`;
  if (state === "starting") return `${capital(reason)}${news.said ? ": " + said(news) : ""}.${value("held") ? " " + kept(about, value) + "." : ""}`;
  if (away) return `The database does not answer: ${said(news)}. ${kept(about, value)}. They are written when it is back.`;
  if (state === "disk_low") return `${capital(reason)}. ${kept(about, value)}.`;
  if (state !== "accepting" || reason) return `${capital(reason) || WORDS[state]}.`;
  if (value("received")) return value("committed") || value("duplicate") ? "Readings arrive and are stored." : "Readings arrive.";
  if (value("held")) return `No reading arrives at the moment. ${kept(about, value)}. They are being written.`;
  return news.sum.received + news.sum.recovered ? "No reading arrives at the moment. None is waiting." : "Ready. No reading has come yet.";
}

function todo(news, about, value, away) {
  const { state } = news.ready;
  if (news.sum.dropped) return `${count(news.sum.dropped)} readings were lost. This must never happen. Keep the log and report it.`;
  if (news.ready.next) return news.ready.next;
  if (away) return "Start the database, or fix the network to it. The service continues by itself.";
  if (state === "on_hold") return `Fix the fault that is named above; \`${typed.run} schema show\` and \`${typed.run} doctor\` check more. The service tries again every ${short(about.hold_probe_s)} s and continues by itself.`;
  if (state === "disk_low" && broken(news.ready)) return "Is the disk of the state folder full, read-only or failing? Acknowledged readings are kept. The service tries a new file every 2 s.";
  if (!news.sum.received && !value("held") && state === "accepting") return `Post a reading: \`curl -H 'content-type: application/json' -d '{"device_id":"d1","metric":"temperature","value":21.5}' http://${about.listen}/v1/readings\``;
  return "";
}

/** When something is going to be full within a week, and where the runbook says more. `still`: no dead letter is added. */
function showMore({ full_in_s }, section, still) {
  const soon = Object.entries(full_in_s ?? {}).filter(([what, seconds]) => !(still && what === "dead_letters") && seconds > 0 && seconds < WEEK_S) /* 0: it is full, and the state says so */;
  const told = soon.map(([what, seconds]) => [FULL[what] ?? what, rough(seconds)]);
  const list = byId("state-full");
  list.hidden = !told.length;
  if (list.dataset.told !== String(told)) list.replaceChildren(...told.map(([what, time]) => make("div", {}, make("dt", {}, `${what} full in`), make("dd", {}, time))));
  list.dataset.told = told;
  const link = byId("state-runbook");
  link.hidden = !section;
  const href = `/runbook#${section}`;
  if (section && link.getAttribute("href") !== href) link.setAttribute("href", href);
}

/** Tell a screen reader, once for each change: the counts in the text change every second. */
function announce(text, change) {
  if (byId("state-said").dataset.change === change) return;
  byId("state-said").dataset.change = change;
  byId("state-said").textContent = text;
}

/** Show whether the page is connected to the service. */
export function showLink(link, seconds) {
  document.body.dataset.link = link;
  byId("link").textContent = link === "live" ? "Live" : `Not connected for ${duration(seconds)}`;
  if (link !== "lost") return;
  byId("state").dataset.level = "off";
  say(byId("state-word"), "Not connected");
  say(byId("state-text"), "The page gets no data from the service. The figures are old.");
  say(byId("state-todo"), `Does the service run? Read its log, or start it as before: \`${typed.restart}\`. The page tries again by itself.`);
  showMore({});
  announce("Not connected.", "lost");
  byId("state-since").textContent = "";
  byId("try-now").hidden = true;
  document.title = "Not connected – iot-ingest";
}

byId("try-now").addEventListener("click", async (event) => {
  const button = event.target;
  button.disabled = true;
  try {
    await act("/hold/release", { dead_letter: false });
  } catch (error) {
    say(byId("state-todo"), error.message);
  }
  setTimeout(() => (button.disabled = false), 2_000);
});
