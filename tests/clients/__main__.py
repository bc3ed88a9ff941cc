"""`./run clients`: unmodified client libraries write, while database and service are killed.

At last a client is made from the OpenAPI document, and schemathesis asks all that it knows.

Exit codes: 0 all points that a client was told are kept are in the table, once and unaltered, and
each client says if its token is wrong, and each answer is in the OpenAPI document; 1 not so; 2
wrong use.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from tests.clients.document import MAKER, Found, try_document, try_made_client
from tests.clients.document import NAME as SCHEMATHESIS
from tests.clients.judge import says_so
from tests.clients.libraries import CLIENTS, Libraries, MissingProgram
from tests.clients.running import World, opened
from tests.clients.trial import Result, try_client

COLUMNS = "client|version|token as|points|told kept|in table|lost|doubled|altered|errors shown"
NAMES = [*(client.name for client in CLIENTS), MAKER, SCHEMATHESIS]


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    made = argparse.ArgumentParser(
        prog="./run clients",
        description="Unmodified client libraries write points, while the database is restarted "
        "and the service is killed. All that a client was told is kept must be in the table.",
        epilog="examples:\n  ./run clients\n  ./run clients --only questdb --points 50000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        choices=NAMES,
        help="run only this one; may be repeated: " + ", ".join(NAMES),
    )
    made.add_argument(
        "--points", type=int, default=10_000, metavar="N", help="of each client [10000]"
    )
    made.add_argument(
        "--requests", type=int, default=2_000, metavar="N", help="of schemathesis [2000]"
    )
    made.add_argument("--seed", type=int, default=1, metavar="N", help="of all random values [1]")
    made.add_argument("--libraries", type=Path, required=True, help=argparse.SUPPRESS)
    return made


def table(results: list[Result]) -> str:
    """Return the results as a table."""
    lines = [COLUMNS.split("|")]
    for each in results:
        told, client = each.verdict, each.client
        numbers = (told.points, told.told, told.in_table, told.lost, told.doubled, told.altered)
        shown = (f"{number:,}" for number in (*numbers, each.tries))
        lines.append([client.name, each.version, client.token_as, *shown])
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def faults_of(result: Result) -> list[str]:
    """Return what is wrong with the result of a client."""
    found = result.verdict.faults
    if not says_so(result.said):
        found.append(f"it does not say that its token is wrong: {result.said or '(nothing)'}")
    return found


async def run_all(given: argparse.Namespace) -> int:
    """Run the chosen clients one after another; return the exit code."""
    chosen = set(given.only or NAMES)
    with tempfile.TemporaryDirectory(prefix="clients-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL may run as another user
        async with opened(Path(folder)) as world:
            programs = given.libraries / "bin"
            green = await _run_clients(world, given, chosen - {MAKER, SCHEMATHESIS})
            if MAKER in chosen:
                green = _told(await try_made_client(world, programs)) and green
            if SCHEMATHESIS in chosen:
                how = {"requests": given.requests, "seed": given.seed}
                green = _told(await try_document(world, programs, **how)) and green
    return 0 if green else 1


async def _run_clients(world: World, given: argparse.Namespace, chosen: set[str]) -> bool:
    results, libraries = list[Result](), Libraries(given.libraries)
    clients = [client for client in CLIENTS if client.name in chosen]
    libraries.prepare(clients)
    for client in clients:
        began_s = time.monotonic()
        result = await try_client(world, libraries, client, points=given.points, seed=given.seed)
        results.append(result)
        word = "RED" if faults_of(result) else "ok"
        print(f"{word:<4} {client.name} ({time.monotonic() - began_s:.0f} s)", flush=True)
        for fault in faults_of(result):
            print(f"     {fault}", flush=True)
    if results:
        print(f"\n{table(results)}\n\nwith a wrong token:")
    for result in results:
        kind = result.said.partition(":")[0]
        print(f"  {result.client.name}: {kind}: .. {says_so(result.said) or 'says nothing'}")
    return not any(faults_of(result) for result in results)


def _told(found: Found) -> bool:
    """Print what came of a program; return whether nothing is wrong."""
    print(f"\n{found.fault}\n{'RED' if found.fault else 'ok':<4} {found.shown()}".lstrip("\n"))
    return not found.fault


def main(words: list[str] | None = None) -> int:
    """Run the chosen clients; return the exit code."""
    given = parser().parse_args(words)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run_all(given))
    except MissingProgram as error:
        print(f"./run clients: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
