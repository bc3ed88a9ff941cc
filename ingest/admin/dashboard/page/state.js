// The state of the service as text: the state of /readyz, its reason, its start, and what to do.

import { act, byId, count, duration, moment, say, short } from "./text.js";

const LEVELS = {
  accepting: "ok", slowed: "warn", starting: "warn", draining: "warn",
  on_hold: "bad", full: "bad", disk_low: "bad",
};
const WORDS = {
  accepting: "Accepting", slowed: "Slowed", starting: "Starting", draining: "Stopping",
  on_hold: "Writes are paused", full: "Full", disk_low: "The disk is nearly full",
};
const HOLDS = {
  schema: "The table is not as the service needs it. Fix the table; `./run schema show` prints the difference.",
  breaker: "The database refuses more than one row in five. Fix the constraint. If the rows are really bad, move them to the dead letters: `./run hold release --dead-letter`.",
  permission: "The role may not write. An administrator runs `./run schema apply --role ROLE`.",
  authentication: "The database refuses the password or the role. Correct the role; or correct `database_url` and restart the service.",
  database_missing: "There is no such database. Create it; or correct `database_url` and restart the service.",
  not_durable: "The database can lose committed readings in a crash. `./run doctor` says what to set.",
  dead_letters_full: "The dead letters are full. Replay or discard some below, or raise dlq_bytes_max.",
  dead_letters_broken: "The dead letters cannot be written. Check the disk of the state folder.",
};

const capital = (reason) => reason[0].toUpperCase() + reason.slice(1);
const broken = (reason) => reason.includes("the journal cannot be written");

export function level(state) {
  return LEVELS[state] ?? "off";
}

/** Show the state. `news` is an event of the feed, `about` the start of the history. */
export function showState(news, about, value) {
  const { state, reason, since } = news.ready;
  const away = /database (is away|does not answer)/.test(reason);
  byId("state").dataset.level = away && state === "accepting" ? "warn" : level(state);
  say(byId("state-word"), word(state, reason, away));
  say(byId("state-text"), sentence(news, about, value, away));
  say(byId("state-todo"), todo(news, about, value, away));
  announce(byId("state-word").textContent + ". " + byId("state-todo").textContent, state + away + broken(reason));
  const age = Date.now() / 1000 - Date.parse(since) / 1000;
  byId("state-since").textContent = `since ${moment(since)} (${duration(age)})`;
  byId("try-now").hidden = !(state === "on_hold" || away);
}

function word(state, reason, away) {
  if (away && state === "accepting") return "Accepting, the database is away";
  return state === "disk_low" && broken(reason) ? "The journal cannot be written" : WORDS[state] ?? state;
}

/** The number of readings that wait, and where they are. */
function kept(about, value) {
  const held = count(value("held"));
  if (about.buffer !== "journal") return `${held} of ${count(about.buffer_rows_max)} readings are kept`;
  const onDisk = value("disk_rows") ? `, ${count(value("disk_rows"))} of them on the disk only` : "";
  return `${held} readings are kept${onDisk} (${short(value("buffer_used_pct"))} % of the journal)`;
}

const said = (news) => news.said.replaceAll("`", "'") || "no more is known";

function sentence(news, about, value, away) {
  const { state, reason } = news.ready;
  if (state === "on_hold") return `${reason.replace("the database refuses: ", "")}: ${said(news)}. ${kept(about, value)}. Nothing is lost.`;
  if (state === "starting") return `${capital(reason)}${news.said ? ": " + said(news) : ""}.${value("held") ? " " + kept(about, value) + "." : ""}`;
  if (away) return `The database does not answer: ${said(news)}. ${kept(about, value)}. They are written when it is back.`;
  if (state === "disk_low") return `${capital(reason)}. ${kept(about, value)}.`;
  if (state !== "accepting") return reason || WORDS[state];
  if (value("received")) return value("committed") || value("duplicate") ? "Readings arrive and are stored." : "Readings arrive.";
  if (value("held")) return `No reading arrives at the moment. ${kept(about, value)}. They are being written.`;
  return news.sum.received + news.sum.recovered ? "No reading arrives at the moment. None is waiting." : "Ready. No reading has come yet.";
}

function todo(news, about, value, away) {
  const { state, reason } = news.ready;
  if (news.sum.dropped) return `${count(news.sum.dropped)} readings were lost. This must never happen. Keep the log and report it.`;
  if (state === "on_hold") {
    const known = Object.keys(HOLDS).find((each) => reason.includes(each));
    return `${HOLDS[known] ?? "Fix the fault that the database reports; `./run doctor` checks more."} The service tries again every ${short(about.hold_probe_s)} s and continues by itself.`;
  }
  if (away) return "Start the database, or fix the network to it. The service continues by itself.";
  if (state === "full") return "Posts are answered 503 until there is space. If the database works, it is too slow for this load: see the flush time below.";
  if (state === "slowed") return "Posts wait for space. If this lasts, the database is too slow for this load.";
  if (state === "disk_low" && broken(reason)) return "Is the disk of the state folder full, read-only or failing? Posts are answered 503. Acknowledged readings are kept. The service tries a new file every 2 s. `./run doctor` checks more.";
  if (state === "disk_low") return "Free some space on the disk of the state folder. Posts are answered 503 until then.";
  if (state === "starting") return "Posts are answered 503 until the table has been checked.";
  if (!news.sum.received && !value("held")) return `Post a reading: \`curl -H 'content-type: application/json' -d '{"device_id":"d1","metric":"temperature","value":21.5}' http://${about.listen}/v1/readings\``;
  return "";
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
  say(byId("state-todo"), "Does the service run? Read its log, or start it with `./run`. The page tries again by itself.");
  announce("Not connected.", "lost");
  byId("state-since").textContent = "";
  byId("try-now").hidden = true;
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
