// Curves over time on canvases. Charts of one board share its time axis, and its cursor (pointer or arrow keys).

import { between, label, scale, times, usual } from "./board.js";
import { clock, make, moment } from "./text.js";

const RIGHT = 10, TOP = 14, BOTTOM = 20; // around the plot, in CSS pixels; left: as wide as the labels
const DOTS_MAX = 60; // so few values are also drawn as dots

/** One chart. `series` are {name, label, tone}; `tell` writes a value of the axis with
 *  its unit, which steps by `base`. `peaks`: a rare peak does not set the axis. `floating`: it need not begin
 *  at 0. `band` are the names of two columns, between which is shaded: the range of the first curve. */
export class Chart {
  constructor(board, options) {
    Object.assign(this, { least: 0, base: 1000, bound: null, level: null, peaks: false, floating: false, band: null, join: 0, left: 50 }, options, { board });
    const { id, title, unit, series } = options;
    this.canvas = make("canvas", { tabindex: 0, role: "img", "aria-describedby": "curves-hint" });
    this.legend = make("ul", { class: "legend" });
    this.values = series.map(({ label, tone }) => {
      const value = make("b", {}, "–");
      this.legend.append(make("li", { class: tone }, make("i"), make("span", {}, label, " "), value));
      return value;
    });
    if (this.band) {
      this.range = make("b", {}, "–");
      this.legend.append(make("li", { class: `${series[0].tone} band` }, make("i"), make("span", {}, "range "), this.range));
    }
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
      const step = (event.shiftKey ? 10 : 1) * board.step;
      const now = board.cursor ?? board.last;
      const to = { ArrowLeft: now - step, ArrowRight: now + step, Home: board.begin, End: board.last, Escape: null }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      board.move(to);
    });
  }

  get plot() {
    return { width: this.canvas.clientWidth - this.left - RIGHT, height: this.canvas.clientHeight - TOP - BOTTOM };
  }

  x(second) {
    const { begin, last } = this.board;
    return this.left + ((second - begin) / Math.max(last - begin, 1)) * this.plot.width;
  }

  secondAt(x) {
    const { begin, last } = this.board;
    return Math.round(begin + ((x - this.left) / this.plot.width) * (last - begin));
  }

  /** The rows of a column that are shown. */
  rows(name) {
    return (this.board.columns.get(name) ?? []).slice(this.firstRow);
  }

  /** Draw the curves, and the texts beside them. */
  draw() {
    const { canvas, board } = this;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (!width || !board.rows) return;
    const pen = this.cleared(width, height);
    this.firstRow = Math.max(0, Math.round((board.begin - board.first) / board.step));
    const from = board.first + this.firstRow * board.step;
    const shown = this.series.map(({ name }) => this.rows(name));
    const axis = this.axis([...shown, ...(this.band ?? []).map((name) => this.rows(name))]);
    const y = (value) => TOP + this.plot.height * (1 - (Math.min(Math.max(value, axis.bottom), axis.top) - axis.bottom) / (axis.top - axis.bottom));
    this.axes(pen, axis, y);
    this.shadeTrouble(pen, from);
    if (board.stale && board.stale < board.last) this.tint(pen, "off", board.stale, board.last);
    const bound = this.bound?.() ?? 0;
    if (bound && bound <= axis.top) this.limit(pen, y(bound));
    if (this.band) this.shade(pen, ...this.band.map((name) => this.rows(name)), from, y);
    const drawn = shown.flatMap((values, at) => (at && !values.some((value) => value) ? [] : [at])); // a second line at 0 would hide the first
    pen.globalAlpha = board.stale ? 0.5 : 1; // a curve of before is dimmed, its texts are not
    for (const at of drawn.reverse()) this.curve(pen, shown[at], from, y, at);
    pen.globalAlpha = 1;
    this.peak = this.marked(pen, shown, from, axis.top);
    this.readOut(pen, y);
  }

  cleared(width, height) {
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `11px ${getComputedStyle(canvas).fontFamily}`;
    this.muted = getComputedStyle(this.legend).color;
    this.rule = getComputedStyle(canvas).borderTopColor;
    return pen;
  }

  axis(lists) {
    if (this.floating) {
      const values = lists.flat().filter((value) => value !== null);
      return values.length ? between(Math.min(...values), Math.max(...values)) : between(0, 1);
    }
    let most = this.least;
    for (const values of lists) for (const value of values) if (value > most) most = value;
    if (this.peaks) most = Math.max(this.least, usual(lists));
    const bound = this.bound?.() ?? 0;
    if (bound && most > bound / 2) most = Math.max(bound, most);
    return scale(most, this.base);
  }

  axes(pen, { bottom, top, step }, y) {
    const { board } = this;
    const digits = Math.min(6, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));
    const tell = this.floating && top < 1e4 && bottom > -1e4 ? (value) => value.toFixed(digits) : this.tell;
    const labels = [];
    for (let at = 0; bottom + at * step <= top + step / 1e3 && at < 12; at++) labels.push([bottom + at * step, tell(bottom + at * step)]);
    this.left = Math.ceil(Math.max(28, ...labels.map(([, text]) => pen.measureText(text).width))) + 8;
    if (this.floating) this.left = board.left = Math.max(this.left, board.left ?? 0); // one time axis for all
    pen.lineWidth = 1;
    pen.strokeStyle = this.rule;
    pen.fillStyle = this.muted;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const [value, text] of labels) {
      line(pen, this.left, y(value), this.left + this.plot.width, y(value));
      pen.fillText(text, this.left - 6, y(value));
    }
    pen.textAlign = "center";
    pen.textBaseline = "alphabetic";
    const right = this.left + this.plot.width, bottomY = TOP + this.plot.height;
    const ticks = times(board.begin, board.last, Math.max(2, this.plot.width / 70)).map(([second, text]) => [this.x(second), text]).filter(([x]) => x >= this.left + 14 && x <= right - 14);
    if (this.floating && ticks.length < 2) { // both ends instead
      const every = board.span > 86_400 ? 86_400 : 1;
      ticks.splice(0, 1, [this.left + 26, label(board.begin, every)], [right - 26, label(board.last, every)]);
    }
    for (const [x, text] of ticks) {
      line(pen, x, bottomY, x, bottomY + 4);
      pen.fillText(text, x, bottomY + 16);
    }
  }

  /** Shade a time in a tone. */
  tint(pen, tone, begin, end) {
    pen.globalAlpha = 0.13;
    pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(`--paint-${tone}`);
    pen.fillRect(this.x(begin), TOP, Math.max(1, this.x(end) - this.x(begin)), this.plot.height);
    pen.globalAlpha = 1;
  }

  /** Shade the seconds in which the service was in trouble; `level` returns the tone. */
  shadeTrouble(pen, from) {
    if (!this.level) return;
    for (let second = from; second <= this.board.last; second++) {
      const tone = this.level(this.board.at("level", second));
      if (!tone) continue;
      let end = second;
      while (end < this.board.last && this.level(this.board.at("level", end + 1)) === tone) end++;
      this.tint(pen, tone, second, Math.min(end + 1, this.board.last));
      second = end;
    }
  }

  limit(pen, y) {
    pen.setLineDash([4, 4]);
    pen.strokeStyle = this.muted;
    line(pen, this.left, y, this.left + this.plot.width, y);
    pen.setLineDash([]);
  }

  /** Runs of values, as lists of row numbers. A gap of at most `join` rows does not end a run. */
  runs(values) {
    const found = [];
    values.forEach((value, row) => {
      if (value === null) return;
      const run = found.at(-1);
      if (run && row - run.at(-1) <= this.join + 1) run.push(row);
      else found.push([row]);
    });
    return found;
  }

  curve(pen, values, from, y, at) {
    const x = (row) => this.x(from + row * this.board.step);
    const runs = this.runs(values);
    const dots = this.floating && runs.flat().length <= DOTS_MAX;
    pen.strokeStyle = pen.fillStyle = this.tone(at);
    pen.lineWidth = 1.6;
    pen.lineJoin = "round";
    for (const run of runs) {
      pen.beginPath();
      for (const row of run) pen.lineTo(x(row), y(values[row]));
      pen.stroke();
      if (run.length > 1 && at === 0 && !this.floating) {
        pen.lineTo(x(run.at(-1)), TOP + this.plot.height);
        pen.lineTo(x(run[0]), TOP + this.plot.height);
        pen.globalAlpha = 0.1;
        pen.fill();
        pen.globalAlpha = 1;
      }
      for (const row of dots || run.length === 1 ? run : []) dot(pen, x(row), y(values[row]), 2); // a line of one second is none
    }
  }

  shade(pen, low, high, from, y) {
    const x = (row) => this.x(from + row * this.board.step);
    pen.fillStyle = this.tone(0);
    pen.globalAlpha = 0.16;
    for (const run of this.runs(low)) {
      pen.beginPath();
      for (const row of run) pen.lineTo(x(row), y(high[row]));
      for (const row of [...run].reverse()) pen.lineTo(x(row), y(low[row]));
      pen.fill();
    }
    pen.globalAlpha = 1;
  }

  /** Mark the greatest value if the axis does not reach it; returns it as text. */
  marked(pen, shown, from, top) {
    let most = top, where = 0;
    for (const values of shown) values.forEach((value, row) => value > most * 1.001 && ([most, where] = [value, row]));
    if (most === top) return "";
    const text = `▲ ${this.tell(most)}`;
    const half = pen.measureText(text).width / 2;
    const x = this.x(from + where * this.board.step);
    pen.fillStyle = this.muted;
    pen.textAlign = "center";
    pen.fillText(text, Math.min(Math.max(x, this.left + half), this.left + this.plot.width - half), TOP - 4);
    return `, a peak of ${this.tell(most)} at ${clock(from + where * this.board.step)}`;
  }

  tone(at) {
    return getComputedStyle(this.legend.children[at].firstChild).color;
  }

  /** The second that is read out without a cursor: the last; of a device the last with a value. */
  get newest() {
    const { board } = this;
    const row = this.floating ? board.columns.get(this.series[0].name).findLastIndex((value) => value !== null) : -1;
    return row < 0 ? board.last : board.first + row * board.step;
  }

  readOut(pen, y) {
    const { board } = this;
    const second = board.cursor ?? this.newest;
    const told = this.series.map(({ name, label }, at) => {
      const value = board.at(name, second);
      const text = value === null ? "–" : this.tell(value);
      if (this.values[at].textContent !== text) this.values[at].textContent = text;
      return `${label} ${value === null ? "nothing" : text}`;
    });
    if (this.band) {
      const [low, high] = this.band.map((name) => board.at(name, second));
      const ends = low === null ? ["–"] : [this.tell(low), this.tell(high)];
      this.range.textContent = ends.join(" to ");
      this.range.parentElement.hidden = ends[0] === ends.at(-1);
    }
    this.when.textContent = board.cursor === null ? "" : board.span > 43_200 ? moment(new Date(second * 1000).toISOString()) : clock(second);
    this.said = `${this.title}: ${told.join(", ")}`;
    if (board.cursor === null) {
      this.canvas.setAttribute("aria-label", `${this.title}, ${this.unit}. Now: ${told.join(", ")}${this.peak}`);
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
      dot(pen, x, y(value), 3.5);
    });
  }
}

function dot(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 7);
  pen.fill();
}

function line(pen, x, y, toX, toY) {
  pen.beginPath();
  pen.moveTo(Math.round(x) + 0.5, Math.round(y) + 0.5);
  pen.lineTo(Math.round(toX) + 0.5, Math.round(toY) + 0.5);
  pen.stroke();
}
