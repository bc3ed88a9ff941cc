"""Defines a fault, and has the list of all faults, which their modules fill.

A fault is a coroutine that does harm to a World and undoes it. Everything else (load, ledger, the
wait until the service is quiet, the comparison, the end in order) is the same for all faults and
stands in world.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Harm = Callable[[Any], Awaitable[None]]  # its argument is the World, which imports this file
Kind = Literal["fault", "loss", "control", "mutant"]
SERVE, BROKER, YEARS = "serve", "broker", "years"  # the tables of faults
FILES_MAX = 400  # open files of the service (I8)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row of the table. `name` is that of the plan (`F11`), or of a control or mutant.

    `does` describes the harm in words; `{n}` stands for the number of times. `times` and
    `quick_times` are this number in the whole run and in the quick run (0: not part of it).
    `settings` and `database` are settings of the service and of PostgreSQL; `mutant` names the
    patch that patched.py puts into the service. `asks` is the ack of the posts, `rate` is in posts
    a second, `invalid` the share of bad items, `duplicates` that of items that come twice. `front`:
    clients connect through a proxy of their own. `lazy_disk`: all files are on a disk that loses
    what was not fsynced. `debian`: the database is Debian's PostgreSQL, which has ICU.
    `before` is done before the service starts. `files_max`: the most open files
    of the service. A control or a mutant must break one of `breaks`, may break `follows`, a
    consequence of that, and nothing else; each harm may lose at most `lost_each_max` readings. So
    must a loss: a harm to the only copy of readings, which nobody can keep, but which must be told.
    `brokers`: gateways and writers with so many nats-servers, instead of one service (0). In their
    configuration `broker_words` replaces words; `stream` are other settings of the stream.
    `years`: the table has partitions, which leave it for an archive.
    """

    name: str
    title: str
    does: str
    harm: Harm
    kind: Kind = "fault"
    times: int = 1
    quick_times: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)
    database: Mapping[str, str] = field(default_factory=dict)
    mutant: str = ""
    asks: str = "durable"
    rate: float = 60.0
    invalid: float = 0.01
    duplicates: float = 0.05
    front: bool = False
    lazy_disk: bool = False
    debian: bool = False
    years: bool = False
    brokers: int = 0
    broker_words: Mapping[str, str] = field(default_factory=dict)
    stream: Mapping[str, object] = field(default_factory=dict)
    files_max: int = FILES_MAX
    before: Harm | None = None
    breaks: frozenset[str] = frozenset()
    follows: frozenset[str] = frozenset()
    lost_each_max: int | None = None
    limit_s: float = 180.0

    @property
    def table(self) -> str:
        """The table that it is in: each has a record of its own."""
        return BROKER if self.brokers else YEARS if self.years else SERVE


FAULTS: dict[str, Fault] = {}


def fault(name: str, title: str, does: str, **more: object) -> Callable[[Harm], Harm]:
    """Put the decorated harm into the list."""

    def put(harm: Harm) -> Harm:
        assert name not in FAULTS, f"{name} is there twice"
        FAULTS[name] = Fault(name=name, title=title, does=does, harm=harm, **more)  # type: ignore[arg-type]
        return harm

    return put


def of_table(table: str = SERVE) -> dict[str, Fault]:
    """Return the faults of SERVE, BROKER or YEARS, in the order of their table."""
    names = sorted(FAULTS, key=place)
    return {name: FAULTS[name] for name in names if FAULTS[name].table == table}


def place(name: str) -> tuple[int, int]:
    """Return a key that sorts F2 before F10, and faults before controls before mutants."""
    return "FPBYLCM".index(name[0]), int(name[1:])
