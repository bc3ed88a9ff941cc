"""The moments of posts: the shape of a rate over time, and the moments that it gives.

Pure: iterators of seconds from the start, without end if the shape has none. Promises: the same
seed gives the same moments; they never decrease; over any time their number is that of the shape
(constant: to within one; Poisson: on average).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, count, repeat
from typing import Literal, NamedTuple

Arrivals = Literal["constant", "poisson"]


class Stretch(NamedTuple):
    """A time in which the rate changes linearly between two values; `for_s` may be infinite."""

    for_s: float
    from_per_s: float
    to_per_s: float

    @property
    def posts(self) -> float:
        """The number of its posts."""
        if self.from_per_s == self.to_per_s == 0:
            return 0.0
        return (self.from_per_s + self.to_per_s) / 2 * self.for_s

    def moment(self, posts: float) -> float:
        """Return the seconds until it has given `posts` posts (0 to all)."""
        slope = 0.0
        if math.isfinite(self.for_s):
            slope = (self.to_per_s - self.from_per_s) / self.for_s
        if slope == 0.0:
            return posts / self.from_per_s
        # posts = from * t + slope * t**2 / 2, solved in the form that loses no digits.
        root = math.sqrt(max(0.0, self.from_per_s**2 + 2 * slope * posts))
        return 2 * posts / (self.from_per_s + root) if posts else 0.0


@dataclass(frozen=True)
class Shape:
    """Stretches in order; `repeats`: from the first again, for ever.

    Raises ValueError for an impossible rate or time.
    """

    stretches: tuple[Stretch, ...]
    repeats: bool = False

    def __post_init__(self) -> None:
        for each in self.stretches:
            if not (each.for_s > 0 and math.isfinite(each.from_per_s + each.to_per_s)):
                raise ValueError("a time must be above 0 and a rate a finite number")
            if each.from_per_s < 0 or each.to_per_s < 0:
                raise ValueError("a rate must not be negative")
            if each.for_s == math.inf and each.from_per_s != each.to_per_s:
                raise ValueError("what never ends cannot rise or fall")
        if not any(each.posts > 0 for each in self.stretches):
            raise ValueError("a shape needs a rate above 0")

    def unroll(self) -> Iterator[Stretch]:
        """Yield all stretches in order, for ever if they repeat."""
        if self.repeats:
            return chain.from_iterable(repeat(self.stretches))
        return iter(self.stretches)

    def posts(self, within_s: float) -> float:
        """Return the number of posts in the first `within_s` seconds (a finite number)."""
        total = 0.0
        for each in self.unroll():
            if within_s < each.for_s:
                part = Stretch(within_s, each.from_per_s, each.from_per_s)
                slope = (each.to_per_s - each.from_per_s) / each.for_s
                return total + part.posts + slope * within_s**2 / 2
            total += each.posts
            within_s -= each.for_s
        return total


def constant(per_s: float) -> Shape:
    """Return one rate, for ever."""
    return Shape((Stretch(math.inf, per_s, per_s),))


def ramp(from_per_s: float, to_per_s: float, over_s: float) -> Shape:
    """Return a rate that rises (or falls) linearly, and then stays."""
    hold = Stretch(math.inf, to_per_s, to_per_s)
    return Shape((Stretch(over_s, from_per_s, to_per_s), hold))


def steps(per_s: Sequence[float], each_s: float) -> Shape:
    """Return one rate after another, each for `each_s`; the last one stays."""
    if not per_s:
        raise ValueError("steps need at least one rate")
    first = tuple(Stretch(each_s, rate, rate) for rate in per_s[:-1])
    return Shape((*first, Stretch(math.inf, per_s[-1], per_s[-1])))


def burst(base_per_s: float, peak_per_s: float, every_s: float, for_s: float) -> Shape:
    """Return `base_per_s`, and at the end of each `every_s` for `for_s` the peak, for ever."""
    if not 0 < for_s < every_s:
        raise ValueError("a burst must be shorter than the time from one to the next")
    calm = Stretch(every_s - for_s, base_per_s, base_per_s)
    return Shape((calm, Stretch(for_s, peak_per_s, peak_per_s)), repeats=True)


def moments(
    shape: Shape,
    *,
    arrivals: Arrivals = "constant",
    seed: int | None = None,
    within_s: float = math.inf,
) -> Iterator[float]:
    """Yield the moments of the posts, in seconds from the start, below `within_s`.

    `constant`: evenly spaced by the rate, the first one at once. `poisson`: as independent devices
    send; a Poisson process whose time is scaled to the shape.
    """
    gaps = random.Random(seed)
    poisson = accumulate(gaps.expovariate(1.0) for _ in repeat(None))
    due = count(0.0) if arrivals == "constant" else poisson
    began_s = before = 0.0  # seconds and posts of the stretches that are over
    wanted = next(due)
    for stretch in shape.unroll():
        if began_s >= within_s:
            return
        end = before + stretch.posts
        moment = stretch.moment
        while wanted < end:
            at_s = began_s + moment(wanted - before)
            if at_s >= within_s:
                return
            yield at_s
            wanted = next(due)
        before = end
        began_s += stretch.for_s
