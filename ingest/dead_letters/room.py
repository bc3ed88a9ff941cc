"""How much room the dead letters have, and for whom.

Invalid items find room until the letters of all reasons use half of it. This half is shared by the
senders of such items: tokens, or networks where nobody needs one. A sender may use no more than it
leaves free for others, and what it has used counts half after a day. So one sender never fills that
half, whatever names its items have, and a sender that has sent no invalid item finds room until
there is none. If a trusted proxy does not say whose post it brings, the sender is not known (""):
it may be all of them, so no share holds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from ingest.model.causes import MAKE_SPACE, Cause, Trouble, trouble_of
from ingest.model.errors import DeadLettersFull, ShareUsed
from ingest.model.ledger import DeadLetterStats
from ingest.model.letter import EXHAUSTED, Letter
from ingest.system.clock import monotonic_s

INVALID_FULL = "invalid_full"
SHARE_USED = "sender_share_used"  # of the space for invalid items
CAUSES = {
    INVALID_FULL: Cause(
        "posts with an invalid item are refused: the dead letters are half full, and the rest is "
        "kept for valid readings",
        MAKE_SPACE,
        "ingestinvaliditemsrefused",
        rank=40,
    ),
    SHARE_USED: Cause(
        "posts of a sender are refused if one item is invalid: it has used its share of the space "
        "for such items",
        "`{run} dlq list --where reason=invalid` shows what is wrong with its items. Fix the "
        "sender. Then replay or discard them.",
        "ingestsendershareused",
        rank=50,
    ),
}
INVALID_PARTS = 2  # one of so many parts of all may be invalid items
HALF_LIFE_S = 86_400.0
SENDERS_MAX = 10_000  # those that are remembered; about 200 bytes each
TOLD_S = 60.0  # after its last refusal


def trouble(letters: DeadLetterStats) -> Trouble:
    """Return why posts with an invalid item are refused, or nothing."""
    if letters.invalid_full:
        return trouble_of(CAUSES, INVALID_FULL)
    return trouble_of(CAUSES, SHARE_USED if letters.share_used_by else "", letters.share_used_by)


class Room:
    """The room of a folder of `bytes_max`. `auto_replay`: some letters leave it by themselves."""

    def __init__(self, bytes_max: int, *, auto_replay: bool) -> None:
        self._bytes_max = bytes_max
        self._auto_replay = auto_replay
        self._shares = Shares()
        self._refused = ("", 0.0)  # sender, at

    @property
    def share_used_by(self) -> str:
        """A sender of whom items were refused in the last minute: its share is used; or ""."""
        sender, at_s = self._refused
        return sender if monotonic_s() - at_s < TOLD_S else ""

    def is_full_for_invalid(self, taken: int) -> bool:
        """Whether there is no room for invalid items: less than a hundredth of that half."""
        half = self._bytes_max // INVALID_PARTS
        return (half - taken) * 100 < half

    def refusal(
        self,
        letters: Sequence[Letter],
        sender: str | None,
        size: int,
        *,
        taken: int,
        returning: int,
    ) -> DeadLettersFull | None:
        """Return why letters of `size` bytes find no room beside those that are `taken`.

        `returning` is the least size of the letters that the automatic replay takes.
        """
        limit, whose = self._limit(letters, sender, returning)
        if taken + size > limit:
            return DeadLettersFull(f"the dead letters have {taken} bytes of {limit}{whose}")
        if not sender or self._shares.allows(sender, size, free=limit - taken, taken=taken):
            return None
        if self.share_used_by in ("", sender):
            self._refused = (sender, monotonic_s())
        return ShareUsed(f"{sender} has used its share of the space for invalid items")

    def _limit(
        self, letters: Sequence[Letter], sender: str | None, returning: int
    ) -> tuple[int, str]:
        """Return how large the folder may become with these letters, and a text about the limit.

        Letters that the automatic replay takes leave the folder only while writes are not paused.
        So they must not use all of it: refused rows need space too, or writes would be paused. For
        the same reason the bytes of such letters do not count against refused rows.
        """
        if sender is not None:
            return self._bytes_max // INVALID_PARTS, ", up to which invalid items are kept"
        if not self._auto_replay:
            return self._bytes_max, ""
        if all(letter.reason == EXHAUSTED for letter in letters):
            return self._bytes_max * 3 // 4, ", up to which retries_exhausted are kept"
        return self._bytes_max + returning, ""

    def use(self, sender: str | None, size: int) -> None:
        """Count what a sender uses from now on."""
        if sender:
            self._shares.use(sender, size)


class Shares:
    """How many bytes each sender has used lately."""

    def __init__(self) -> None:
        self._used: OrderedDict[str, tuple[float, float]] = OrderedDict()  # bytes, at

    def allows(self, sender: str, size: int, *, free: int, taken: int) -> bool:
        """Whether a sender may use `size` of `free` bytes. No more than `taken` are in use now."""
        return min(self._used_by(sender), taken) + size <= free

    def use(self, sender: str, size: int) -> None:
        """Count what a sender uses. If there are too many senders, the oldest is forgotten."""
        self._used[sender] = (self._used_by(sender) + size, monotonic_s())
        self._used.move_to_end(sender)
        if len(self._used) > SENDERS_MAX:
            self._used.popitem(last=False)

    def _used_by(self, sender: str) -> float:
        size, at_s = self._used.get(sender, (0.0, 0.0))
        return size and size * 0.5 ** ((monotonic_s() - at_s) / HALF_LIFE_S)
