"""`ingest serve`, and what all commands share that run until a signal ends them: uvloop."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Coroutine
from typing import Any

from ingest.cli.parser import AllSettings, Command, say
from ingest.config.loading import Loaded

EXIT_CODES = "exit codes: 0 no reading was lost, 3 some were, 2 it could not start"

# How often the garbage collector looks at new, at older, and at all objects (`gc.set_threshold`).
# To look at all objects stops the loop for 24 ms with 1,000 bodies that are arriving, and for 220
# ms with 9,000 (measured). With Python's default (700, 10, 10) many slow clients cause that often.
COLLECT_AT = (5_000, 5, 1_000)


def on_uvloop(main: Coroutine[Any, Any, int]) -> int:
    """Run it on an event loop of uvloop; return the exit code."""
    import asyncio  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def collect_rarely() -> None:
    """Make the garbage collector leave what was imported alone. Import all first.

    Imported objects live until the end. If the collector looked at them each time, it would stop
    the loop for 16 to 53 ms, and the p99 of a post at half the peak would be as long. With `freeze`
    it is 5 to 7 ms (measured).
    """
    import gc  # noqa: PLC0415

    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AT)


def _serve(_args: argparse.Namespace, loaded: Loaded) -> int:
    from ingest.app.service import serve  # noqa: PLC0415

    collect_rarely()
    return on_uvloop(serve(loaded.settings, **of_terminal(loaded)))


def of_terminal(loaded: Loaded) -> dict[str, Any]:
    """Return what `serve` and `up` tell a person, and where."""
    return {
        "announce": say,
        "url_origin": loaded.origins["database_url"],
        "terminal": sys.stdout.isatty(),
    }


COMMAND = Command(
    examples=(
        "ingest serve --listen 0.0.0.0:8080",
        "ingest serve --database-url postgresql://ingest@db.example/metrics",
    ),
    run=_serve,
    epilog=EXIT_CODES,
    settings=AllSettings(),
)
