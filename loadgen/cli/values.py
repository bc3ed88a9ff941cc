"""Reads the values of options from text: shares, mixes, shapes, files.

Pure except `file_to_write`. Each function raises argparse.ArgumentTypeError with a sentence that
names valid values; argparse puts the option's name before it.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from loadgen.proof.table_names import column_names, table_name
from loadgen.traffic import schedule
from loadgen.traffic.post import target_of

# The service's own bound is `post_rows_max`, 5,000 by default; its body's is 1 MiB.
READINGS_A_POST_MAX = 100_000
SHAPES = "constant, ramp:FROM..TO, steps:R1,R2,..[:S], burst:BASE,PEAK,EVERY_S,FOR_S, storm[:MIN]"
# Missed moments of a schedule are counted one by one, at some 3 million a second: with a higher
# rate the driver would count for ever, and handle no signal.
RATE_MAX = 1_000_000
BACKLOG_MINUTES, BACKLOG_MINUTES_MAX = 30, 1440

Mix = tuple[tuple[int, float], ...]
Value = TypeVar("Value")


def readable(read: Callable[[str], Value]) -> Callable[[str], Value]:
    """Return a reader that does the same, and shows the user the text of its ValueError."""

    def read_it(text: str) -> Value:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read_it


url = readable(target_of)
table = readable(table_name)
columns = readable(column_names)


def token(text: str) -> str:
    """Read a token."""
    if not text.isascii() or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError("a token has printable ASCII characters only")
    return text


def admin_url(text: str) -> str:
    """Read the URL of an admin port, with or without `/metrics`."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text} does not begin with http://")
    return text.removesuffix("/").removesuffix("/metrics")


def count(least: int = 1, most: float = math.inf) -> Callable[[str], int]:
    """Return a reader of a whole number within bounds."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not least <= number <= most:
            at_most = "" if most == math.inf else f" and at most {most:,.0f}"
            raise argparse.ArgumentTypeError(f"{text} must be at least {least}{at_most}")
        return number

    return read


def above_zero(text: str) -> float:
    """Read a number above 0, such as a rate or seconds."""
    number = _number(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return number


def rate(text: str) -> float:
    """Read a rate in posts a second."""
    return _checked_rate(above_zero(text))


def _checked_rate(per_s: float) -> float:
    if per_s > RATE_MAX:
        raise argparse.ArgumentTypeError(f"{per_s:,.0f} posts a second: at most {RATE_MAX:,}")
    return per_s


def path(text: str) -> Path:
    """Read the path of a file or folder; an empty one would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return Path(text)


def words(text: str) -> tuple[str, ...]:
    """Read the words of a command, in quotes as a shell has them."""
    try:
        found = tuple(shlex.split(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    if not found:
        raise argparse.ArgumentTypeError("is empty")
    return found


def share(text: str) -> float:
    """Read `1%` or `0.01`."""
    number = _number(text[:-1]) / 100 if text.endswith("%") else _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share: 0 to 1, or 0% to 100%")
    return number


def mix(text: str) -> Mix:
    """Read `100`, or `1x80,100x20`: sizes with weights."""
    sizes = []
    for part in text.split(","):
        size, times, weight = part.partition("x")
        readings = count(1, READINGS_A_POST_MAX)(size)
        sizes.append((readings, above_zero(weight) if times else 1.0))
    return tuple(sizes)


class ShapeChoice(NamedTuple):
    """A shape as the user gave it; `rates_given`: it contains the rates."""

    text: str
    name: str
    numbers: tuple[float, ...]

    @property
    def rates_given(self) -> bool:
        """Whether `--rate` has no meaning beside it."""
        return self.name in {"ramp", "steps", "burst"}

    @property
    def backlog_minutes(self) -> int:
        """The backlog that each device posts first."""
        return int(self.numbers[0]) if self.name == "storm" else 0

    def make(self, rate: float, duration_s: float | None) -> schedule.Shape:
        """Return the shape. Raises ValueError for numbers that do not go together."""
        if self.name == "ramp":
            if duration_s is None:
                raise ValueError("a ramp needs --duration-s: it rises over that time")
            return schedule.ramp(self.numbers[0], self.numbers[1], duration_s)
        if self.name == "steps":
            *rates, each_s = self.numbers
            if not (each_s or duration_s):
                raise ValueError("say how long a step is: steps:100,200:10, or --duration-s")
            return schedule.steps(rates, each_s or (duration_s or 0.0) / len(rates))
        if self.name == "burst":
            return schedule.burst(*self.numbers)
        return schedule.constant(rate)

    def duration_s(self) -> float | None:
        """Its own duration; None: it has none."""
        *rates, each_s = self.numbers or (0.0,)
        return len(rates) * each_s if self.name == "steps" and each_s else None


def shape(text: str) -> ShapeChoice:
    """Read one of SHAPES."""
    name, _, rest = text.partition(":")
    if name not in _NUMBERS_OF or (name == "constant" and rest):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape; may be {SHAPES}")
    try:
        wanted = ShapeChoice(text, name, _NUMBERS_OF[name](rest))
        for stretch in wanted.make(1.0, 1.0).stretches:
            _checked_rate(max(stretch.from_per_s, stretch.to_per_s))
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; may be {SHAPES}") from error
    return wanted


def _ramp(rest: str) -> tuple[float, ...]:
    first, _, last = rest.partition("..")
    return _number(first), _number(last)


def _steps(rest: str) -> tuple[float, ...]:
    rates, colon, each_s = rest.partition(":")
    return *map(_number, rates.split(",")), above_zero(each_s) if colon else 0.0


def _burst(rest: str) -> tuple[float, ...]:
    numbers = tuple(map(_number, rest.split(",")))
    if len(numbers) != 4:
        raise ValueError("a burst has four numbers")
    return numbers


_NUMBERS_OF: dict[str, Callable[[str], tuple[float, ...]]] = {
    "constant": lambda _: (),
    "ramp": _ramp,
    "steps": _steps,
    "burst": _burst,
    "storm": lambda rest: (count(1, BACKLOG_MINUTES_MAX)(rest) if rest else BACKLOG_MINUTES,),
}


def _number(text: str) -> float:
    with suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise argparse.ArgumentTypeError(f"{text!r} is not a number")


def file_to_write(text: str) -> Path:
    """Read the path of a file that can be written; checked before the run, not after it."""
    path = Path(text).absolute()
    for is_so, why in (
        (path.is_dir(), f"{text} is a folder"),
        (not path.parent.is_dir(), f"there is no folder {path.parent}"),
        (not os.access(path.parent, os.W_OK), f"cannot write to {path.parent}"),
    ):
        if is_so:
            raise argparse.ArgumentTypeError(why)
    return path
