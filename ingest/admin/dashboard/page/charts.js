// Curves over time on canvases that share one time axis and one read-out.
//
// A Board has the columns of the last half hour; each Chart draws some of them. A missing value is
// null and is drawn as a gap. Pointer or arrow keys on one chart move the read-out of all charts.

import { clock, make } from "./text.js";

const LEFT = 50, RIGHT = 10, TOP = 8, BOTTOM = 20; // around the plot, in CSS pixels
const TICKS_S = [15, 30, 60, 120, 300, 600, 900, 1800];

/** Columns of numbers, one row a second; `first` is the Unix second of row 0. */
export class Board {
  constructor(rowsMax) {
    this.rowsMax = rowsMax;
    this.first = 0;
    this.columns = new Map();
    this.charts = [];
    this.span = 900;
    this.cursor = null; // the Unix second that is read out, or null: the newest
    this.onCursor = () => {};
  }

  get last() {
    return this.first + this.rows - 1;
  }

  get rows() {
    return this.columns.values().next().value?.length ?? 0;
  }

  /** Append rows. Seconds without a row become gaps. */
  append(first, columns) {
    const length = Object.values(columns)[0]?.length ?? 0;
    if (!length) return;
    const known = this.rows;
    if (!known || first > this.last + this.rowsMax) {
      this.first = first;
      this.columns = new Map(Object.entries(columns).map(([name, values]) => [name, [...values]]));
    } else {
      const missing = Math.max(0, first - this.last - 1);
      const repeated = Math.max(0, this.last + 1 - first);
      for (const [name, values] of Object.entries(columns)) {
        const column = this.columns.get(name);
        for (let gap = 0; gap < missing; gap++) column.push(null);
        column.push(...values.slice(repeated));
      }
    }
    const over = this.rows - this.rowsMax;
    if (over > 0) {
      for (const column of this.columns.values()) column.splice(0, over);
      this.first += over;
    }
  }

  /** The value of a column at a Unix second, or null. */
  at(name, second) {
    return this.columns.get(name)?.[second - this.first] ?? null;
  }

  /** Show the last `span` seconds. */
  show(span) {
    this.span = span;
    this.draw();
  }

  move(second) {
    this.cursor = second === null ? null : Math.min(this.last, Math.max(this.last - this.span + 1, second));
    this.onCursor(this.cursor);
    this.draw();
  }

  draw() {
    if (this.drawing) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      for (const chart of this.charts) chart.draw();
    });
  }
}

/** A round number of units (powers of `base`) not below `value`, and the step of its axis. */
export function scale(value, base = 1000) {
  if (!(value > 0)) return { top: 1, step: 0.5 };
  const unit = base ** Math.floor(Math.log(value) / Math.log(base) + 1e-9);
  const power = unit * 10 ** Math.floor(Math.log10(value / unit) + 1e-9);
  for (const top of [1, 1.5, 2, 3, 4, 5, 6, 8, 10]) {
    if (top * power >= value * (1 - 1e-9)) return { top: top * power, step: (top * power) / (top === 1.5 || top === 3 || top === 6 ? 3 : 2) };
  }
  return { top: 10 * power, step: 5 * power };
}

/** One chart. `series` are {name, label, tone}; `tell` writes a value of the axis with its unit,
 *  which steps by `base`. */
export class Chart {
  constructor(board, { id, title, unit, series, tell, least = 0, base = 1000, bound = null, level = null }) {
    Object.assign(this, { board, title, unit, series, tell, least, base, bound, level });
    this.canvas = make("canvas", { tabindex: 0, role: "img", "aria-describedby": "curves-hint" });
    this.legend = make("ul", { class: "legend" });
    this.values = series.map(({ label, tone }) => {
      const value = make("b", {}, "–");
      this.legend.append(make("li", { class: tone }, make("i"), make("span", {}, label, " "), value));
      return value;
    });
    this.when = make("time", {}, "");
    this.element = make("figure", { class: "chart card", id }, make("figcaption", {}, make("h3", {}, title, " ", make("small", {}, unit)), this.when), this.legend, this.canvas);
    board.charts.push(this);
    new ResizeObserver(() => board.draw()).observe(this.canvas);
    this.listen();
  }

  listen() {
    const { canvas, board } = this;
    canvas.addEventListener("pointermove", (event) => board.move(this.secondAt(event.offsetX)));
    canvas.addEventListener("pointerdown", (event) => board.move(this.secondAt(event.offsetX)));
    canvas.addEventListener("pointerleave", () => board.move(null));
    canvas.addEventListener("blur", () => board.move(null));
    canvas.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 10 : 1;
      const now = board.cursor ?? board.last;
      const to = {
        ArrowLeft: now - step, ArrowRight: now + step,
        Home: board.last - board.span + 1, End: board.last, Escape: null,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      board.move(to);
    });
  }

  get plot() {
    return { width: this.canvas.clientWidth - LEFT - RIGHT, height: this.canvas.clientHeight - TOP - BOTTOM };
  }

  x(second) {
    return LEFT + ((second - this.board.last + this.board.span - 1) / (this.board.span - 1)) * this.plot.width;
  }

  secondAt(x) {
    const { last, span } = this.board;
    return Math.round(last - span + 1 + ((x - LEFT) / this.plot.width) * (span - 1));
  }

  /** Draw the curves, and the texts beside them. */
  draw() {
    const { canvas, board } = this;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !board.rows) return;
    const ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `11px ${getComputedStyle(canvas).fontFamily}`;
    const inks = getComputedStyle(this.legend);
    this.muted = inks.color;
    this.rule = getComputedStyle(canvas).borderTopColor;
    const from = Math.max(board.first, board.last - board.span + 1);
    const shown = this.series.map(({ name }) => (board.columns.get(name) ?? []).slice(from - board.first));
    let most = this.least;
    for (const values of shown) for (const value of values) if (value > most) most = value;
    const bound = this.bound?.() ?? 0;
    if (bound && most > bound / 2) most = Math.max(bound, most);
    const { top, step } = scale(most, this.base);
    const y = (value) => TOP + this.plot.height * (1 - Math.min(value, top) / top);
    this.axes(pen, top, step, y);
    this.trouble(pen, from);
    if (bound && bound <= top) this.limit(pen, y(bound));
    shown.forEach((values, at) => this.curve(pen, values, from, y, at));
    this.readOut(pen, y);
  }

  axes(pen, top, step, y) {
    const { board } = this;
    pen.lineWidth = 1;
    pen.strokeStyle = this.rule;
    pen.fillStyle = this.muted;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (let value = 0; value <= top * 1.001; value += step) {
      line(pen, LEFT, y(value), LEFT + this.plot.width, y(value));
      pen.fillText(this.tell(value), LEFT - 6, y(value));
    }
    pen.textAlign = "center";
    pen.textBaseline = "alphabetic";
    const wanted = Math.max(2, this.plot.width / 70);
    const every = TICKS_S.find((tick) => board.span / tick <= wanted) ?? 1800;
    const offset = new Date().getTimezoneOffset() * 60;
    const begin = board.last - board.span + 1;
    for (let second = Math.ceil((begin - offset) / every) * every + offset; second <= board.last; second += every) {
      const x = this.x(second);
      if (x < LEFT + 14 || x > LEFT + this.plot.width - 14) continue;
      line(pen, x, TOP + this.plot.height, x, TOP + this.plot.height + 4);
      pen.fillText(clock(second, every % 60 !== 0), x, TOP + this.plot.height + 16);
    }
  }

  /** Shade the seconds in which the service was in trouble; `level` returns the tone. */
  trouble(pen, from) {
    if (!this.level) return;
    for (let second = from; second <= this.board.last; second++) {
      const tone = this.level(this.board.at("state", second));
      if (!tone) continue;
      let end = second;
      while (end < this.board.last && this.level(this.board.at("state", end + 1)) === tone) end++;
      pen.globalAlpha = 0.13;
      pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(`--paint-${tone}`);
      pen.fillRect(this.x(second), TOP, Math.max(1, this.x(end + 1) - this.x(second)), this.plot.height);
      pen.globalAlpha = 1;
      second = end;
    }
  }

  limit(pen, y) {
    pen.setLineDash([4, 4]);
    pen.strokeStyle = this.muted;
    line(pen, LEFT, y, LEFT + this.plot.width, y);
    pen.setLineDash([]);
  }

  curve(pen, values, from, y, at) {
    pen.strokeStyle = pen.fillStyle = this.tone(at);
    pen.lineWidth = 1.6;
    pen.lineJoin = "round";
    let start = null;
    const finish = (end) => {
      if (start === null) return;
      pen.beginPath();
      for (let row = start; row < end; row++) pen.lineTo(this.x(from + row), y(values[row]));
      pen.stroke();
      if (end - start === 1) { // a line of one second is none: a dot
        pen.beginPath();
        pen.arc(this.x(from + start), y(values[start]), 2, 0, 7);
        pen.fill();
      } else if (at === 0) {
        pen.lineTo(this.x(from + end - 1), y(0));
        pen.lineTo(this.x(from + start), y(0));
        pen.globalAlpha = 0.1;
        pen.fill();
        pen.globalAlpha = 1;
      }
      start = null;
    };
    values.forEach((value, row) => {
      if (value === null) finish(row);
      else start ??= row;
    });
    finish(values.length);
  }

  tone(at) {
    return getComputedStyle(this.legend.children[at].firstChild).color;
  }

  readOut(pen, y) {
    const { board } = this;
    const second = board.cursor ?? board.last;
    const told = this.series.map(({ name, label }, at) => {
      const value = board.at(name, second);
      const text = value === null ? "–" : this.tell(value);
      if (this.values[at].textContent !== text) this.values[at].textContent = text;
      return `${label} ${value === null ? "nothing" : text}`;
    });
    this.when.textContent = board.cursor === null ? "" : clock(second);
    this.said = `${this.title}: ${told.join(", ")}`;
    if (board.cursor === null) {
      this.canvas.setAttribute("aria-label", `${this.title}, ${this.unit}. Now: ${told.join(", ")}`);
      return;
    }
    const x = this.x(second);
    pen.strokeStyle = this.muted;
    pen.lineWidth = 1;
    line(pen, x, TOP, x, TOP + this.plot.height);
    this.series.forEach(({ name }, at) => {
      const value = board.at(name, second);
      if (value === null) return;
      pen.fillStyle = this.tone(at);
      pen.beginPath();
      pen.arc(x, y(value), 3.5, 0, 7);
      pen.fill();
    });
  }
}

function line(pen, x, y, toX, toY) {
  pen.beginPath();
  pen.moveTo(Math.round(x) + 0.5, Math.round(y) + 0.5);
  pen.lineTo(Math.round(toX) + 0.5, Math.round(toY) + 0.5);
  pen.stroke();
}
