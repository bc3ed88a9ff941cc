// Axes: round numbers for values, and round times.

import { clock } from "./text.js";

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

/** An axis for values that need not be near 0. */
export function between(least, most) {
  const size = Math.max(Math.abs(least), Math.abs(most));
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

function label(second, every) {
  const date = new Date(second * 1000);
  const midnight = date.getHours() === 0 && date.getMinutes() === 0;
  if (every >= DAY_S || (midnight && every >= 3600)) return `${date.getMonth() + 1}-${date.getDate()}`;
  return clock(second, every % 60 !== 0);
}
