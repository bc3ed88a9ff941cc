"""The state of a SenML pack (RFC 8428): base fields, and the name and time of a record with them.

Promises: a resolved record depends only on what the RFC calls resolved; how a sender splits names
and times between base fields and records changes nothing. Times and integers are exact.
Does not: know JSON, or which readings are kept.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any, NamedTuple

from ingest.formats.timestamp import Fault, sum_us
from ingest.model.errors import Refused

VERSION_MAX = 10  # of SenML
RELATIVE_US = (1 << 28) * 1_000_000  # a smaller time counts from now
SUM = ",sum"  # no name of SenML has a comma, so this is no other metric
# Of `bn` and `bu`, which are joined with each name of a pack; device and metric have 256 each.
BASE_CHARACTERS_MAX = 600
SHORT_NAME = 300  # in characters; longer ones are not kept in memory
NO_NAME = "value"  # the metric if a name is that of a device only

BASE = frozenset({"bn", "bt", "bu", "bv", "bs", "bver"})
_KINDS: dict[str, tuple[type, ...]] = {
    "bn": (str,),
    "bt": (int, float),
    "bu": (str,),
    "bv": (int, float),
    "bs": (int, float),
    "bver": (int, float),  # 1e1 is 10
}
# RFC 9039: the device ends before the next separator.
_URN = re.compile(r"(urn:dev:[^:/_]+:[^:/_]+)(?:[:/_]+(.*))?", re.IGNORECASE | re.DOTALL)
_LAST = re.compile(r"[:/](?=[^:/]*$)")

Number = int | float


class Base(NamedTuple):
    """The base fields that are in effect; None: not set."""

    bn: str = ""
    bt: Number | None = None
    bv: Number | None = None
    bs: Number | None = None
    bver: Number | None = None
    bu: str = ""

    def after(self, record: dict[str, Any]) -> Base:
        """Return the base with the fields of a record.

        Raises Refused (`not_senml`) if one is wrong: all later records would be read wrongly.
        """
        changed: dict[str, Any] = {}
        for field in BASE & record.keys():
            value = record[field]
            if type(value) not in _KINDS[field]:
                raise Refused("not_senml", f"the base field `{field}` has the wrong type")
            if type(value) is float and not math.isfinite(value):
                raise Refused("not_senml", f"the base field `{field}` does not fit into a float64")
            if type(value) is str and len(value) > BASE_CHARACTERS_MAX:
                why = f"the base field `{field}` has more than {BASE_CHARACTERS_MAX} characters"
                raise Refused("not_senml", why)
            if field == "bver" and not (1 <= value <= VERSION_MAX and value % 1 == 0):
                raise Refused("not_senml", f"only versions of SenML up to {VERSION_MAX} are known")
            changed[field] = value
        return self._replace(**changed)

    def fields(self) -> dict[str, Any]:
        """Return the fields as a record has them."""
        return {name: value for name, value in self._asdict().items() if value not in (None, "")}


def time_us(base: Number | None, own: Number | None, received_us: int) -> int | Fault:
    """Return the time of a record in Unix microseconds, half to even."""
    us = sum_us(base or 0, own or 0)
    if not isinstance(us, int) or us >= RELATIVE_US:
        return us
    return received_us + us


def split_name(name: str) -> tuple[str, str]:
    """Return the device and the metric of a record's whole name; the device may be empty."""
    return _split(name) if len(name) <= SHORT_NAME else _split.__wrapped__(name)


@lru_cache(maxsize=8_192)
def _split(name: str) -> tuple[str, str]:
    urn = _URN.fullmatch(name)
    if urn is not None:
        return urn[1], urn[2] or NO_NAME
    last = _LAST.search(name)
    if last is None:
        return "", name
    device, metric = name[: last.start()].rstrip(":/"), name[last.end() :]
    if not metric:
        return device, NO_NAME
    if device.startswith(("/", ":")) or not device:
        return "", name.lstrip(":/")
    return device, metric
