"""All causes of /readyz. A new one stands in the list of its part; here a new list is added."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from ingest.app import backlog, housekeeping, space
from ingest.app.annexes import annexes
from ingest.dead_letters import room
from ingest.model import causes
from ingest.model.causes import UNKNOWN, Cause
from ingest.receiver import senders

OF_PROCESSES = {
    "starting": Cause(
        "the table has not been checked yet",
        "Wait some seconds. If this lasts: `{log}`.",
        "ingestnoposttaken",
        rank=220,
    ),
    "draining": Cause("the service is stopping", "", "", rank=230),
}
LISTS: tuple[Mapping[str, Cause], ...] = (
    causes.CAUSES,
    backlog.CAUSES,
    OF_PROCESSES,
    room.CAUSES,
    space.CAUSES,
    housekeeping.CAUSES,
    senders.CAUSES,
    *(each.causes for each in annexes()),
)
CAUSES = {name: cause for each in LISTS for name, cause in each.items()}


def cause_of(name: str) -> Cause:
    """Return the entry of a cause; of a name such as `sqlstate_12345`, the entry for all those."""
    return CAUSES.get(name) or UNKNOWN._replace(words=f"{UNKNOWN.words} ({name})")


def rank_of(name: str) -> float:
    """Return a place in the order of importance: the most important cause has the least."""
    return cause_of(name).rank if name else inf


def may_be_url(name: str) -> bool:
    """Whether a wrong URL of the database may be the cause."""
    return bool(name) and "{fix_url}" in cause_of(name).next_step


def next_step(name: str, fields: Mapping[str, str]) -> str:
    """Return what to do about a cause, in the words of `fields`; of no cause, nothing."""
    return cause_of(name).next_step.format_map(fields) if name else ""
