// Dead letters: the newest ones, one in full, replay and discard after a confirmation.

import { act, ask, byId, confirmed, count, fill, make, mayAct, moment, say, typed } from "./text.js";

const PERIOD_MS = 3_000;
const REASONS = { invalid: "invalid", refused_by_database: "refused by the database", retries_exhausted: "failed after all retries", drained: "left over at a stop", not_ours: "no block of readings" };

export class Letters {
  constructor() {
    this.chosen = new Set();
    this.shown = [];
    this.live = null;
    this.stale = true;
    byId("letters-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.load();
    });
    byId("letters-all").addEventListener("change", (event) => {
      this.chosen = new Set(event.target.checked ? this.shown.map((each) => each.id) : []);
      for (const box of byId("letters").tBodies[0].querySelectorAll("input")) box.checked = event.target.checked;
      this.buttons();
    });
    byId("replay").addEventListener("click", () => this.replay({ ids: [...this.chosen], code: this.where().code }, count(this.chosen.size)));
    byId("discard").addEventListener("click", () => this.discard({ ids: [...this.chosen] }, this.chosen.size));
    byId("replay-all").addEventListener("click", () => this.replayAll());
    byId("discard-all").addEventListener("click", () => this.discardAll());
    setInterval(() => this.stale && !this.chosen.size && !document.hidden && this.load(), PERIOD_MS);
  }

  /** Called every second with the number of live letters; loads the list again if it changed. */
  hear(live) {
    if (live !== this.live) this.stale = true;
    this.live = live;
    this.buttons();
  }

  where() {
    const form = new FormData(byId("letters-form"));
    return Object.fromEntries([...form].map(([name, value]) => [name, value.trim()]).filter(([, value]) => value));
  }

  async load() {
    this.stale = false;
    try {
      const { letters, looked_at_all } = await ask(`/dead-letters?${new URLSearchParams({ ...this.where(), limit: matchMedia("(max-width: 600px)").matches ? 20 : 100 })}`);
      this.show(letters, looked_at_all);
    } catch (error) {
      say(byId("letters-note"), `Not available: ${error.message}.`);
    }
  }

  show(letters, all) {
    this.shown = letters;
    this.chosen.clear();
    byId("letters-all").checked = false;
    fill(byId("letters"), letters.map((each) => this.row(each)));
    byId("letters").hidden = !letters.length;
    byId("letters-scroll").classList.toggle("bare", !letters.length);
    byId("letters-empty").hidden = letters.length > 0;
    const filtered = Object.keys(this.where()).length > 0;
    say(byId("letters-empty"), filtered
      ? "No dead letter matches." + (all ? "" : " Only the newest were checked; `" + typed.run + " dlq list --limit 0` checks all.")
      : "No dead letters. Every accepted reading is in the table, or on its way to it.");
    byId("letters-form").hidden = byId("letters-actions").hidden = !letters.length && !filtered && all;
    if (!mayAct) byId("letters-actions").hidden = true;
    if (!this.said) say(byId("letters-note"), all ? "" : `The newest ${count(letters.length)} are shown; \`${typed.run} dlq list --limit 0\` shows all.`);
    this.buttons();
  }

  row(letter) {
    const box = make("input", { type: "checkbox", "aria-label": `Select the dead letter of ${letter.device ?? "no device"}`, change: (event) => {
      if (event.target.checked) this.chosen.add(letter.id);
      else this.chosen.delete(letter.id);
      this.buttons();
    } });
    const full = make("button", { type: "button", class: "plain", click: () => this.open(letter.id) }, "details");
    const why = (letter.field ? `${letter.field}: ` : "") + letter.message;
    return make("tr", {}, make("td", {}, box), make("td", {}, moment(letter.failed_at)), make("td", {}, REASONS[letter.reason] ?? letter.reason), make("td", {}, make("code", {}, letter.code)), make("td", {}, letter.sender || "–"), make("td", {}, make("span", { class: "two" }, letter.device ?? "–")), make("td", { class: "wide", title: why }, make("span", { class: "two" }, why)), make("td", {}, full));
  }

  buttons() {
    if (!mayAct) return;
    const some = this.chosen.size > 0;
    byId("replay").disabled = byId("discard").disabled = !some || this.busy;
    byId("replay").textContent = some ? `Replay ${count(this.chosen.size)}` : "Replay";
    byId("discard").textContent = some ? `Discard ${count(this.chosen.size)}` : "Discard";
    const all = Object.keys(this.where()).length || !this.live ? "all that match" : `all ${count(this.live)}`;
    byId("replay-all").textContent = `Replay ${all}`;
    byId("discard-all").textContent = `Discard ${all}`;
    byId("replay-all").disabled = byId("discard-all").disabled = !this.shown.length || Boolean(this.busy);
  }

  async open(id) {
    try {
      const letter = await ask(`/dead-letters?id=${id}`);
      const facts = {
        Reason: REASONS[letter.reason] ?? letter.reason, Code: letter.code, Field: letter.field, Message: letter.message, Sender: letter.sender, Device: letter.device,
        Received: letter.received_at, Failed: letter.failed_at, Attempts: letter.attempts || null, Id: letter.id,
      };
      byId("letter-facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value != null && value !== "").flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
      byId("letter-kind").textContent = letter.original != null ? "As it was posted" : "The reading";
      byId("letter-original").textContent = letter.original ?? JSON.stringify(letter.reading, null, 2);
      byId("letter").showModal();
    } catch (error) {
      this.tell(`Not available: ${error.message}.`);
    }
  }

  /** How many match, as {matching, all}; null if that cannot be told. */
  async matching() {
    try {
      return await ask(`/dead-letters/count?${new URLSearchParams(this.where())}`);
    } catch (error) {
      this.tell(`Not available: ${error.message}.`);
      return null;
    }
  }

  async replayAll() {
    const found = await this.matching();
    if (found) await this.replay({ where: this.where(), most: found.matching || 1 }, (found.all ? "" : "the oldest ") + count(found.matching));
  }

  async replay(what, many) {
    const text = "They are validated again and written to the table. Those that are stored leave the dead letters. Those that are refused again stay. Nothing is stored twice.";
    if (!(await confirmed(`Replay ${many} dead letters?`, text, "Replay"))) return;
    await this.doing("Replaying ..", async () => {
      const done = await act("/dead-letters/replay", what);
      const refused = Object.entries(done.refused).map(([code, times]) => `${count(times)} ${code}`);
      return `${count(done.replayed)} of ${count(done.asked)} are stored: ${count(done.new)} new rows, ${count(done.duplicate)} were in the table already` + (refused.length ? `; refused again: ${refused.join(", ")}` : "") + (done.not_allowed_left ? `; ${count(done.not_allowed_left)} not_allowed are left: filter by this code` : "") + (done.stopped ? `; stopped: ${done.stopped}` : "") + ".";
    });
  }

  async discardAll() {
    const found = await this.matching();
    if (found) await this.discard({ where: this.where() }, found.matching, found.all ? "" : "the oldest ");
  }

  /** Discard `many`, in rounds, since the service takes a bounded number at once. */
  async discard(what, many, which = "") {
    const text = "Discarded dead letters are deleted. Their readings are not in the table and cannot be restored.";
    if (!(await confirmed(`Discard ${which}${count(many)} dead letters?`, text, "Discard", true))) return;
    await this.doing("Discarding ..", async () => {
      let done = 0;
      while (done < many) {
        const { discarded } = await act("/dead-letters/discard", what.where ? { ...what, most: many - done } : what);
        done += discarded;
        if (!discarded || what.ids) break;
        this.tell(`${count(done)} of ${count(many)} are discarded ..`);
      }
      return `${count(done)} dead letters discarded.`;
    });
  }

  async doing(begun, work) {
    this.busy = true;
    this.tell(begun);
    this.buttons();
    try {
      this.tell(await work());
    } catch (error) {
      this.tell(`It did not work: ${error.message}.`);
    }
    this.busy = false;
    await this.load();
  }

  tell(text) {
    this.said = true;
    say(byId("letters-note"), text.replaceAll("`", "'"));
    clearTimeout(this.quiet);
    this.quiet = setTimeout(() => (this.said = false), 15_000);
  }
}
