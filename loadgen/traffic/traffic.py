"""The posts of a simulated fleet, made as fast as they can be sent.

Promises: every reading of a device and metric has a timestamp of its own, except in posts that are
repeated on purpose; the same recipe and the same moments give the same posts, byte for byte; memory
grows with the number of devices, not with the length of a run.
Does not: read a clock (moments are arguments), or the service's answers.

How: the text of a reading up to its timestamp is kept for each series (`{"device_id":"room-0001",
"metric":"temperature","value":21.53,"ts":`). Devices measure one after another, each about once a
second, so a post takes little more time than joining texts and digits.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from loadgen.traffic import spoil
from loadgen.traffic.encode import FORMATS
from loadgen.traffic.fleet import make_fleet
from loadgen.traffic.post import Post, compress, finish, head_of

GOOD, MIXED, INVALID, BROKEN = "good", "mixed", "invalid", "broken"
MEASURED_ANEW_US = 1_000_000
# A measurement takes 3 us. So their rate is bounded, and their number before one post.
MEASURE_PAUSE_US_MIN = 50
MEASURED_A_POST_MAX = 8
REPEATABLE_POSTS = 64
BACKLOG_BYTES_AHEAD = 64 * 1024**2
NO_END = 2**63
MINUTE_US = 60_000_000


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The content of posts.

    `mix` has (readings a post, weight). `late`, `future` and `poison` are shares of readings,
    `duplicates` and `broken` of posts, 0 to 1. `backlog_minutes`: each device first posts its
    backlog without a connection, a reading of each metric a minute. `posts_max` None: no end.
    `format` is a key of encode.FORMATS. `new_connections` is the share of posts that end their
    connection, so as many come on a new one.
    """

    devices: int = 1000
    seed: int = 1
    mix: tuple[tuple[int, float], ...] = ((1, 1.0),)
    duplicates: float = 0.0
    late: float = 0.0
    future: float = 0.0
    poison: float = 0.0
    broken: float = 0.0
    new_connections: float = 0.0
    gzip: bool = False
    format: str = "json"
    backlog_minutes: int = 0
    posts_max: int | None = None

    @property
    def backlog_posts(self) -> int:
        """Posts that are all due at the start, one a device."""
        return self.devices if self.backlog_minutes else 0


class Traffic:
    """A source of posts for the driver. `now_us` is called once a post: its moment (Unix, us).

    A post's kind says which answer is right: `good` (2xx, all accepted), `mixed` (2xx, with the
    number of dead-lettered readings that `bad_items` has for it), `invalid` (422), `broken` (400).
    `made` counts the posts (duplicates, broken, backlog) and readings (late, future, poison) that
    were mixed in. The observer removes a mixed post from `bad_items` at its final answer.
    """

    def __init__(
        self,
        recipe: Recipe,
        path_and_query: str,
        host: str,
        now_us: Callable[[], int],
        token: str = "",
    ) -> None:
        self.made: Counter[str] = Counter()
        self.bad_items: dict[int, int] = {}
        self._recipe = recipe
        self._now_us = now_us
        self._format = FORMATS[recipe.format]
        self._heads = {  # by (is gzip, closes its connection)
            (gzip, closes): head_of(
                path_and_query,
                host,
                gzip=gzip,
                token=token,
                closes=closes,
                media_type=self._format.media_type,
            )
            for gzip in (False, True)
            for closes in (False, True)
        }
        self._random = random.Random(f"traffic {recipe.seed}")
        self._sizes = [size for size, _ in recipe.mix]
        self._weights = list(accumulate(weight for _, weight in recipe.mix))
        self._posts = 0
        self._posts_max = NO_END if recipe.posts_max is None else recipe.posts_max
        self._ahead: deque[Post] = deque()
        self._readings = 0
        self._last_us = 0
        self._repeatable: deque[Post] = deque(maxlen=REPEATABLE_POSTS)
        self._fleet = make_fleet(recipe.devices, recipe.seed)
        self._texts: list[str] = []  # by series
        self._first_series: list[int] = []  # by device
        self._next_series = 0
        self._next_device = 0
        self._measured_us = 0
        pause_us = MEASURED_ANEW_US // recipe.devices
        self._measure_pause_us = max(pause_us, MEASURE_PAUSE_US_MIN)
        self._next_duplicate = self._gap(recipe.duplicates) - 1
        self._next_broken = self._gap(recipe.broken) - 1
        self._shares = {
            name: share
            for name in ("late", "future", "poison")
            if (share := getattr(recipe, name)) > 0
        }
        # Numbers of readings, counted over the run: so only odd ones take time.
        self._next_odd = {name: self._gap(share) - 1 for name, share in self._shares.items()}
        self._odd_from = min(self._next_odd.values(), default=math.inf)

    def prepare(self, at_us: int) -> None:
        """Prepare the first posts, else they would be late; takes 3 us a series and measurement."""
        if not self._recipe.backlog_posts:
            for number in range(len(self._fleet)):
                self._first(number, at_us)
            return
        held_bytes = 0
        for number in range(min(self._recipe.backlog_posts, self._posts_max)):
            if held_bytes > BACKLOG_BYTES_AHEAD:
                return  # the rest is made when it is due
            self._ahead.append(self._backlog(number, at_us + number))
            held_bytes += len(self._ahead[-1].request)

    def end(self) -> None:
        """Give no more posts."""
        self._posts_max = 0

    def take(self) -> Post | None:
        """Return the next post; None at the end. Call `prepare` before the first."""
        recipe, number = self._recipe, self._posts
        if number >= self._posts_max:
            return None
        self._posts += 1
        at_us = max(self._now_us(), self._last_us + 1)
        if number < recipe.backlog_posts:
            return self._ahead.popleft() if self._ahead else self._backlog(number, at_us)
        if number >= self._next_broken:
            self._next_broken = number + self._gap(recipe.broken)
            return self._broken(number, at_us)
        if number >= self._next_duplicate and self._repeatable:
            self._next_duplicate = number + self._gap(recipe.duplicates)
            self.made["duplicates"] += 1
            return self._random.choice(self._repeatable)._replace(number=number)
        body, readings, bad = self._live(at_us)
        post = self._post(body, readings, GOOD if bad == 0 else MIXED, number)
        if bad == readings:
            post = post._replace(kind=INVALID)
        elif bad:
            self.bad_items[number] = bad
        elif recipe.duplicates:
            self._repeatable.append(post)
        return post

    def _gap(self, share: float) -> float:
        """Return a random distance to the next one, so that a share has no pattern."""
        if share <= 0:
            return math.inf
        if share >= 1:
            return 1
        return 1 + int(math.log(1 - self._random.random()) / math.log(1 - share))

    def _post(self, body: bytes, readings: int, kind: str, number: int) -> Post:
        if self._recipe.gzip:
            body = compress(body)
        return Post(finish(self._head(gzip=self._recipe.gzip), body), readings, kind, number)

    def _head(self, *, gzip: bool) -> bytes:
        share = self._recipe.new_connections
        return self._heads[gzip, share > 0 and self._random.random() < share]

    # Live posts

    def _live(self, at_us: int) -> tuple[bytes, int, int]:
        """Return a body, the number of its readings, and of those that no service may accept."""
        self._measure(at_us)
        rows = self._size()
        begin = self._next_series
        self._next_series = end = begin + rows
        texts = self._texts
        if end <= len(texts):
            chosen = texts[begin:end]
        else:
            chosen = [texts[each % len(texts)] for each in range(begin, end)]
            self._next_series %= len(texts)
        self._last_us = at_us + rows - 1
        items = [f"{text}{ts_us}" for text, ts_us in zip(chosen, range(at_us, at_us + rows))]  # noqa: B905  equal by construction
        bad = self._spoil(items, chosen, at_us) if self._readings + rows > self._odd_from else 0
        self._readings += rows
        if not self._format.is_answered:
            bad = 0  # the right answer is the same
        return self._body(items), rows, bad

    def _body(self, items: list[str]) -> bytes:
        """Return a body of readings, each as its text up to the closing brace."""
        if self._recipe.format != "json":
            return self._format.body([f"{item}}}" for item in items])
        return (f"{items[0]}}}" if len(items) == 1 else f"[{'},'.join(items)}}}]").encode()

    def _size(self) -> int:
        if len(self._sizes) == 1:
            return self._sizes[0]
        drawn = self._random.random() * self._weights[-1]
        return self._sizes[min(bisect(self._weights, drawn), len(self._sizes) - 1)]

    def _measure(self, at_us: int) -> None:
        """Let the next devices measure."""
        due = (at_us - self._measured_us) // self._measure_pause_us
        if due <= 0:
            return
        self._measured_us = at_us
        for _ in range(min(due, MEASURED_A_POST_MAX)):
            number = self._next_device
            self._next_device = (number + 1) % len(self._fleet)
            first = self._first_series[number]
            fresh = self._measured(number, at_us)
            self._texts[first : first + len(fresh)] = fresh

    def _first(self, number: int, at_us: int) -> None:
        self._first_series.append(len(self._texts))
        self._texts += self._measured(number, at_us)
        self._measured_us = at_us

    def _measured(self, number: int, at_us: int) -> list[str]:
        device = self._fleet[number]
        return [
            f'{{"device_id":"{device.name}","metric":"{metric}","value":{str(value).lower()},"ts":'
            for metric, value in device.measure(at_us / 1e6).items()
        ]

    # The odd ones

    def _spoil(self, items: list[str], texts: list[str], at_us: int) -> int:
        """Make some readings late, future or poison, by their shares; return how many are bad."""
        bad = set()
        for name, share in self._shares.items():
            while (index := self._next_odd[name] - self._readings) < len(items):
                self._next_odd[name] += self._gap(share)
                if index in bad:
                    continue  # at most one fault for each reading
                self.made[name] += 1
                text, ts_us = texts[int(index)], at_us + int(index)
                items[int(index)] = spoil.reading(name, text, ts_us, self._random)
                if name != "late":
                    bad.add(index)
        self._odd_from = min(self._next_odd.values())
        return len(bad)

    def _broken(self, number: int, at_us: int) -> Post:
        """Return a post whose body does not fit its head."""
        self.made["broken"] += 1
        body, readings, _ = self._live(at_us)
        # Half of a body of lines, or of MessagePack, may still be one.
        is_gzip_only = self._recipe.format != "json"
        body, is_gzip = spoil.body(body, self._random, is_gzip_only=is_gzip_only)
        return Post(finish(self._head(gzip=is_gzip), body), readings, BROKEN, number)

    def _backlog(self, number: int, at_us: int) -> Post:
        """Return the backlog of device `number`, oldest readings first."""
        items = []
        for minutes_ago in range(self._recipe.backlog_minutes, 0, -1):
            ts_us = at_us - minutes_ago * MINUTE_US
            items += [f"{text}{ts_us}" for text in self._measured(number, ts_us)]
        self._first(number, at_us)
        self.made["backlog"] += 1
        self._last_us = at_us
        return self._post(self._body(items), len(items), GOOD, number)
