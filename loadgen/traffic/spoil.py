"""Makes readings and bodies that are late, impossible or broken, as real fleets send them.

Pure. A reading is an argument as its text up to the timestamp (see `traffic`); the result is its
text up to the closing brace.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from loadgen.traffic.post import compress

HOUR_US = 3_600_000_000
LATE_HOURS_MAX = 168
# The service's window ends a day ahead of now unless its `ts_ahead_s_max` says otherwise.
AHEAD_HOURS_MIN, AHEAD_HOURS_MAX = 48, 720
LONG_NAME_BYTES = 600  # names end at 512 bytes
_AFTER_NAME = '","metric"'

# Each makes a reading that no service may accept, from its text and its timestamp.
_POISON: tuple[Callable[[str, str], str], ...] = (
    lambda text, ts: text.replace(_AFTER_NAME, "\\u0000" + _AFTER_NAME, 1) + ts,
    lambda text, ts: re.sub(r'"value":([^,]+),', r'"value":"\1",', text, count=1) + ts,
    lambda text, _ts: text + '"9999-12-31T23:59:59Z"',
    lambda text, ts: text.replace(_AFTER_NAME, "x" * LONG_NAME_BYTES + _AFTER_NAME, 1) + ts,
)


def reading(how: str, text: str, ts_us: int, draw: random.Random) -> str:
    """Return a reading made `late` (still accepted), `future` or `poison` (refused)."""
    if how == "late":
        # Whole hours: shifted alike, timestamps that differ still differ.
        return f"{text}{ts_us - draw.randint(1, LATE_HOURS_MAX) * HOUR_US}"
    if how == "future":
        return f"{text}{ts_us + draw.randint(AHEAD_HOURS_MIN, AHEAD_HOURS_MAX) * HOUR_US}"
    assert how == "poison", how
    return draw.choice(_POISON)(text, str(ts_us))


def body(whole: bytes, draw: random.Random, *, is_gzip_only: bool = False) -> tuple[bytes, bool]:
    """Return a body that cannot be read, and whether its head must say gzip."""
    how = 2 if is_gzip_only else draw.randrange(3)
    if how == 0:  # the connection was cut, and a proxy made it a whole request
        return whole[: len(whole) // 2], False
    if how == 1:  # flash memory went bad: not UTF-8
        return whole[:12] + b"\xff\xfe" + whole[12:], False
    packed = compress(whole)
    return packed[: len(packed) // 2], True
