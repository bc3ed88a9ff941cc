// The connection to the service: loads the history, then reads the feed. It reconnects by itself.

import { ask } from "./text.js";

const LATE_MS = 4_000; // without news for so long the figures are old
const HIDDEN_MS = 30_000; // a page that nobody sees lets go of its connection

export class Feed {
  /** `on` has history(document), news(event), tail(event) and link(state, seconds). */
  constructor(on) {
    this.on = on;
    this.last = 0; // the newest second we have
    this.started = "";
    this.heardMs = 0;
    this.lostMs = 0;
    this.pauseMs = 500;
    this.device = "";
    this.source = null;
    setInterval(() => this.look(), 1_000);
    document.addEventListener("visibilitychange", () => this.seen());
  }

  /** Connect, or connect again with another device in the tail. */
  async open() {
    clearTimeout(this.timer);
    this.close();
    const turn = (this.turn = Symbol("turn"));
    try {
      const history = await ask(`/history?since=${this.last}`);
      if (turn !== this.turn) return;
      if (this.started && this.started !== history.started && !document.querySelector("dialog[open]")) {
        location.reload(); // another process of the service: its page has another token
        return;
      }
      this.started = history.started;
      this.on.history(history);
    } catch {
      if (turn === this.turn) this.again();
      return;
    }
    const device = this.device ? `&device_id=${encodeURIComponent(this.device)}` : "";
    const source = (this.source = new EventSource(`/feed?tail=true${device}`));
    source.onmessage = (event) => this.hear(JSON.parse(event.data));
    source.addEventListener("tail", (event) => this.on.tail(JSON.parse(event.data)));
    source.onerror = () => this.again();
  }

  hear(event) {
    if (this.last && event.t > this.last + 1 && event.t < this.last + 1_800) {
      this.open(); // seconds are missing: ask for them
      return;
    }
    this.last = event.t;
    this.heardMs = performance.now();
    this.lostMs = 0;
    this.pauseMs = 500;
    this.on.link("live", 0);
    this.on.news(event);
  }

  /** Try again soon, with longer and longer pauses. */
  again() {
    this.close();
    this.lostMs ||= performance.now();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.open(), this.pauseMs * (0.5 + Math.random()));
    this.pauseMs = Math.min(this.pauseMs * 2, 5_000);
    this.look();
  }

  close() {
    this.source?.close();
    this.source = null;
  }

  look() {
    const now = performance.now();
    if (this.lostMs) this.on.link("lost", (now - this.lostMs) / 1000);
    else if (this.heardMs && this.source && now - this.heardMs > LATE_MS) {
      this.lostMs = this.heardMs;
      this.again();
    }
  }

  seen() {
    clearTimeout(this.away);
    if (document.hidden) {
      this.away = setTimeout(() => {
        this.close();
        this.heardMs = this.lostMs = 0;
      }, HIDDEN_MS);
    } else if (!this.source) {
      this.open();
    }
  }
}
