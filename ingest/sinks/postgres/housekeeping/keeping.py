"""Which partitions are old enough to leave the table, and which of them a person must confirm.

Pure: it reads nothing and changes nothing. Times are Unix microseconds of the database's clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ingest.sinks.postgres.housekeeping.partitions import Partition
from ingest.system.clock import rfc3339_or_us

# More at once may be a wrong setting or a clock that has jumped.
MANY, MANY_SHARE = 3, 0.1


class Policy(NamedTuple):
    """How long readings stay in the table (`keep_hot`), and where they go then.

    An empty `archive_dir`: they are dropped. `keep_hot` is the setting as it was written.
    `left_out` are the columns of the table that the archive does not have.
    """

    keep_us: int
    keep_hot: str
    archive_dir: str = ""
    left_out: tuple[str, ...] = ()

    def cutoff_us(self, now_us: int) -> int:
        """Return the time before which all readings may leave."""
        return now_us - self.keep_us

    def entry(self, now_us: int) -> dict[str, Any]:
        """Return what the registry has of a confirmation, under `answer/keep_hot`."""
        return {
            "keep_us": self.keep_us,
            "archive_dir": self.archive_dir,
            "left_out": list(self.left_out),
            "until_us": self.cutoff_us(now_us),
        }


def due(found: Sequence[Partition], pinned: Mapping[str, Any], cutoff_us: int) -> list[Partition]:
    """Return the partitions of ours that have only readings from before `cutoff_us`."""
    return [
        each for each in found if each.ours and each.to_us <= cutoff_us and each.name not in pinned
    ]


def is_confirmed(policy: Policy, answer: Mapping[str, Any] | None) -> bool:
    """Whether a person has said yes to this policy; `answer` is the last confirmation."""
    return (
        answer is not None
        and answer.get("keep_us") == policy.keep_us
        and answer.get("archive_dir") == policy.archive_dir
        and set(policy.left_out) <= set(answer.get("left_out", ()))
    )


def must_confirm(
    leaving: Sequence[Partition], count: int, policy: Policy, answer: Mapping[str, Any] | None
) -> str:
    """Return why a person must confirm that these leave a table of `count` partitions, or nothing.

    `answer` is the last confirmation. It is good for all partitions up to its `until_us`.
    """
    if not leaving:
        return ""
    what = "archived and dropped" if policy.archive_dir else "dropped"
    until = rfc3339_or_us(leaving[-1].to_us)
    said = (
        f"{len(leaving)} of {count} partitions, with all readings before {until}, would be {what}"
    )
    if policy.left_out:
        said += f", but what is in {', '.join(policy.left_out)} would be lost: the files lack it"
    if answer is None or not is_confirmed(policy, answer):
        return f"keep_hot = {policy.keep_hot} has not been confirmed: {said}"
    fresh = [each for each in leaving if each.to_us > answer.get("until_us", 0)]
    if len(fresh) > MANY and len(fresh) > MANY_SHARE * count:
        return f"so many at once: {said}"
    return ""
