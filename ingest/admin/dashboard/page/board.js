// A board: columns of numbers over time, that several charts share, and the cursor in them.
//
// One row is one second, or `step` seconds. A missing value is null and is drawn as a gap.

export class Board {
  constructor(rowsMax, step = 1) {
    this.rowsMax = rowsMax;
    this.step = step;
    this.first = 0; // the Unix second of row 0
    this.columns = new Map();
    this.charts = [];
    this.span = 900;
    this.cursor = null; // the Unix second that is read out, or null: the newest
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
    return Math.min(this.span, Math.max(this.rows, 30) * this.step);
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

  /** Replace all rows; `first` is the Unix second of the first. */
  replace(first, step, columns) {
    Object.assign(this, { first, step, columns: new Map(Object.entries(columns)) });
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
