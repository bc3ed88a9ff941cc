"""The live tail: a sample of the readings as they come in, and of the rejected items.

The receiver calls `Tail.observe` for every decoded post. It keeps the first bytes of a few posts a
second. While a page follows a device, it also searches the bytes of each post for its name. It
takes 0.1 us a post if no page watches. Once a second what was kept is decoded. All of it is
bounded; what is too much is left out, and nothing waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ingest.dead_letters.store import device_in
from ingest.formats.post import Decoded, ItemError
from ingest.model.block import DEVICE_COLUMN, device_needle
from ingest.model.ledger import Ledger
from ingest.model.moments import first_readings, runs
from ingest.model.ports import DeadLetters
from ingest.model.reading import REFUSED, Letter, Reading

POSTS_PER_PERIOD = 3  # sampled; a period is the time between two calls of `take`
HEAD_BYTES = 12_000  # of a post: three rows, even of a table with 100 columns of long names
ROWS_PER_POST = 3
FOLLOWED_MAX = 8  # devices at once, for all pages together
FOUND_MAX = 25  # readings of followed devices per period
ERRORS_MAX, ERROR_BYTES_MAX = 500, 4_096  # per period, and of each
GATHERED_MAX = 30  # readings of several processes, per period


class TailSample(NamedTuple):
    """The sample of one period. `followed` has the readings of devices that a page follows."""

    sampled: list[Reading]
    followed: list[Reading]
    posts: int  # all decoded posts, sampled or not
    rejected: list[str]  # device of each rejected item that names one
    rejected_sampled: bool  # there were more than were kept


class Observed(NamedTuple):
    """What a process says of itself, or several as one. All calls are cheap and never wait.

    `readyz` is that of its health, `message` the last one of its database. `refused_posts` are the
    last ones, newest first.
    """

    ledger: Ledger
    readyz: Callable[[], tuple[int, bytes]]
    tail: Tail
    message: Callable[[], str] = str
    refused_posts: Callable[[], list[dict[str, Any]]] = list


@dataclass
class _Kept:
    """What was kept in the running period."""

    heads: list[bytes] = field(default_factory=list)
    found: deque[bytes] = field(default_factory=lambda: deque(maxlen=FOUND_MAX))
    errors: list[ItemError] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)  # devices
    gathered: list[Reading] = field(default_factory=list)
    left_out: bool = False


class Tail:
    """The tail of one service, or of several. `watched` is the number of pages that show it."""

    def __init__(self) -> None:
        self.watched = 0
        self._followed: dict[str, int] = {}  # device -> number of pages that follow it
        self._needles: list[bytes] = []
        self._posts = 0
        self._left = 0  # posts that are still to be sampled in this period
        self._kept = _Kept()

    def observe(self, decoded: Decoded) -> None:
        """Keep a sample of a decoded post, quickly. Never fails."""
        block, errors, _ = decoded
        self._posts += 1
        if errors:
            most = max(0, ERRORS_MAX - len(self._kept.errors))
            small = [each for each in errors[:most] if len(each.original) <= ERROR_BYTES_MAX]
            self._kept.errors += small
            self._kept.left_out |= len(errors) > len(small)
        if block is None:
            return
        if self._left:
            self._left -= 1
            self._kept.heads.append(block.tuples[:HEAD_BYTES])
        for needle in self._needles:
            for run in runs(block.tuples):
                at = run.tuples.find(needle)
                if at >= DEVICE_COLUMN:
                    self._kept.found.append(run.head(at - DEVICE_COLUMN, HEAD_BYTES))

    def refused(self, letters: Sequence[Letter]) -> None:
        """Keep the devices whose readings the database refused."""
        most = max(0, ERRORS_MAX - len(self._kept.refused))
        refused = [each.reading for each in letters if each.reason == REFUSED and each.reading]
        self._kept.refused += [each.device_id for each in refused[:most]]
        self._kept.left_out |= len(refused) > most

    def add(self, sent: Mapping[str, Any]) -> None:
        """Add the sample of another process, as roles/status.py has sent it. Raises ValueError.

        Of a device that a page follows it has only what this process happened to sample.
        """
        kept = self._kept
        try:
            readings = [Reading(*each) for each in sent["readings"]]
            kept.gathered = [*kept.gathered, *readings][-GATHERED_MAX:]
            kept.refused = [*kept.refused, *map(str, sent["rejected"])][:ERRORS_MAX]
            kept.left_out |= bool(sent["rejected_sampled"])
            self._posts += int(sent["posts"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no sample of a tail: {error}") from error

    def follow(self, device_id: str) -> bool:
        """Search every post for a device from now on; False if too many are followed already."""
        if device_id not in self._followed and len(self._followed) >= FOLLOWED_MAX:
            return False
        self._followed[device_id] = self._followed.get(device_id, 0) + 1
        self._needles = [device_needle(each) for each in self._followed]
        return True

    def unfollow(self, device_id: str) -> None:
        """End one `follow`."""
        self._followed[device_id] -= 1
        if not self._followed[device_id]:
            del self._followed[device_id]
        self._needles = [device_needle(each) for each in self._followed]

    def take(self) -> TailSample:
        """Decode and return what was kept since the last call, and begin the next period."""
        kept, self._kept = self._kept, _Kept()
        posts, self._posts = self._posts, 0
        self._left = POSTS_PER_PERIOD if self.watched else 0
        devices = [device[:128] for each in kept.errors if (device := device_in(each.original))]
        sampled, found = (
            [reading for head in heads for reading in first_readings(head, ROWS_PER_POST)]
            for heads in (kept.heads, kept.found)
        )
        return TailSample(
            sampled + kept.gathered,
            [each for each in found + kept.gathered if each.device_id in self._followed],
            posts,
            devices + kept.refused,
            kept.left_out,
        )


class ObservedDeadLetters:
    """A ports.DeadLetters that appends to another one, and then tells the tail."""

    def __init__(self, letters: DeadLetters, tail: Tail) -> None:
        self._letters = letters
        self._tail = tail

    async def append(self, letters: Sequence[Letter], *, sender: str | None = None) -> None:
        """Append; see ports.DeadLetters."""
        await self._letters.append(letters, sender=sender)
        self._tail.refused(letters)
