// A board: columns of numbers over time, that several charts share, and the cursor in them.
//
// One row is one second, or `step` seconds. A missing value is null and is drawn as a gap.
// Axes: round numbers for values, and round times.

import { clock } from "./text.js";

export class Board {
  constructor(rowsMax, step = 1) {
    this.rowsMax = rowsMax;
    this.step = step;
    this.first = 0; // the Unix second of row 0
    this.columns = new Map();
    this.charts = [];
    this.span = 900;
    this.cursor = null; // the Unix second that is read out, or null: the newest
    this.rowsMin = 30;
    this.stale = 0; // the Unix second after which nothing is known, or 0
    this.onCursor = () => {};
  }

  get last() {
    return this.first + (this.rows - 1) * this.step;
  }

  get rows() {
    return this.columns.values().next().value?.length ?? 0;
  }

  /** The seconds that the charts show. Right after a start there is less than `span`. */
  get shown() {
    return Math.min(this.span, Math.max(this.rows, this.rowsMin) * this.step);
  }

  get begin() {
    return this.last - this.shown + this.step;
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

  /** Replace all rows; `first` is the Unix second of the first, `columns` a Map. All are shown. */
  replace(first, step, columns) {
    Object.assign(this, { first, step, columns });
    this.span = this.rows * step;
    this.draw();
  }

  /** The value of a column at a Unix second, or null. */
  at(name, second) {
    return this.columns.get(name)?.[Math.floor((second - this.first) / this.step)] ?? null;
  }

  /** Show the last `span` seconds. */
  show(span) {
    this.span = span;
    this.draw();
  }

  move(second) {
    const aligned = second === null ? null : this.first + Math.floor((second - this.first) / this.step) * this.step;
    this.cursor = aligned === null ? null : Math.min(this.last, Math.max(this.begin, this.first, aligned));
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

/** How wide each of `many` charts is, in columns of twelve, with at most `most` in a row: no row is left half empty. */
export function spans(many, most) {
  if (many < 1) return [];
  const rows = Math.ceil(many / Math.min(most, 4));
  const few = Math.floor(many / rows);
  const sizes = Array.from({ length: rows }, (_, row) => few + Number(row >= rows - (many % rows)));
  return sizes.flatMap((size) => Array(size).fill(12 / size));
}

/** Give the charts that show their places in a grid whose charts are at least `least` pixels wide. `leads`: the first is twice as wide. */
export function place(grid, charts, least, leads = false) {
  const shown = charts.filter((chart) => !chart.element.hidden);
  const most = Math.max(1, Math.floor(grid.clientWidth / least));
  const first = !leads ? [] : most > 3 ? [6, 3, 3] : most > 2 ? [8, 4] : [12];
  const widths = [...first, ...spans(shown.length - first.length, most)];
  shown.forEach((chart, at) => chart.element.style.setProperty("--span", widths[at]));
}

const TICKS_S = [15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400, 172800, 604800];
const SAMPLES_MIN = 40;
const PEAK = 2.5; // times the usual values: beyond it a peak is cut off and marked
const DAY_S = 86400;

/** A round number of units (powers of `base`) not below `value`, and the step of its axis. */
export function scale(value, base = 1000) {
  if (!(value > 0)) return { bottom: 0, top: 1, step: 0.5 };
  const unit = base ** Math.floor(Math.log(value) / Math.log(base) + 1e-9);
  const power = unit * 10 ** Math.floor(Math.log10(value / unit) + 1e-9);
  for (const top of [1, 1.5, 2, 3, 4, 5, 6, 8, 10]) {
    if (top * power >= value * (1 - 1e-9)) return { bottom: 0, top: top * power, step: (top * power) / (top === 1.5 || top === 3 || top === 6 ? 3 : 2) };
  }
  return { bottom: 0, top: 10 * power, step: 5 * power };
}

/** An axis for values that need not be near 0. One value alone is in the middle of a twentieth more and less. */
export function between(least, most) {
  const size = Math.max(Math.abs(least), Math.abs(most));
  if (least === most && size < 1e300) {
    const room = size / 20 || 1;
    return between(least - room, most + room);
  }
  const wide = Math.max(most - least, size * 1e-9, 1e-300);
  if (!Number.isFinite(wide)) return { bottom: -size, top: size, step: size };
  const power = 10 ** Math.floor(Math.log10(wide / 3));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= (wide / 3) * (1 - 1e-9));
  const bottom = Math.floor(least / step + 1e-9) * step;
  return { bottom, top: Math.max(Math.ceil(most / step - 1e-9) * step, bottom + step), step };
}

/** The greatest value that an axis should show: less than the greatest, if that is a rare peak. */
export function usual(lists) {
  const values = lists.flat().filter((value) => value > 0).sort((a, b) => a - b);
  const most = values.at(-1) ?? 0;
  if (values.length < SAMPLES_MIN) return most;
  const common = values[Math.floor(values.length * 0.95)];
  return most > PEAK * common ? common * 1.3 : most;
}

/** The times of an axis from `begin` to `end` with room for `wanted` labels: [[second, label]]. */
export function times(begin, end, wanted) {
  const span = end - begin;
  const every = TICKS_S.find((tick) => span / tick <= wanted) ?? TICKS_S.at(-1);
  const offset = new Date(end * 1000).getTimezoneOffset() * 60;
  const found = [];
  for (let second = Math.ceil((begin - offset) / every) * every + offset; second <= end; second += every) {
    found.push([second, label(second, every)]);
  }
  return found;
}

/** A label of an axis whose labels are so many seconds apart. */
export function label(second, every) {
  const date = new Date(second * 1000);
  const midnight = date.getHours() === 0 && date.getMinutes() === 0;
  if (every >= DAY_S || (midnight && every >= 3600)) return `${date.getMonth() + 1}-${date.getDate()}`;
  return clock(second, every % 60 !== 0);
}
