"""`ingest serve`: runs the service on uvloop until a signal ends it."""

from __future__ import annotations

import argparse
import sys

from ingest.cli.parser import Parser, SettingsFlags, add_all_settings
from ingest.cli.terminal import say
from ingest.config.loading import Loaded

TAKES = "[options]"
EXAMPLES = (
    "ingest serve --listen 0.0.0.0:8080",
    "ingest serve --database-url postgresql://ingest@db.example/metrics",
)
EPILOG = "exit codes: 0 no reading was lost, 3 some were, 2 it could not start"


# How often the garbage collector looks at new, at older, and at all objects (`gc.set_threshold`).
# To look at all objects stops the loop for 24 ms with 1,000 bodies that are arriving, and for 220
# ms with 9,000 (measured). With Python's default (700, 10, 10) many slow clients cause that often.
COLLECT_AT = (5_000, 5, 1_000)


def add_arguments(parser: Parser, _settings: SettingsFlags) -> None:
    """Add the settings: the command has no other flags."""
    add_all_settings(parser)


def run(_args: argparse.Namespace, loaded: Loaded) -> int:
    """Run the service; return its exit code: 0 if no reading was lost, 3 if some were."""
    import asyncio  # noqa: PLC0415
    import gc  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    from ingest.app.service import serve  # noqa: PLC0415

    # Imported objects live until the end. If the garbage collector looked at them each time, it
    # would stop the loop for 16 to 53 ms, and the p99 of a post at half the peak would be as long.
    # With `freeze` it is 5 to 7 ms (measured).
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AT)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(
            serve(
                loaded.settings,
                announce=say,
                url_origin=loaded.origins["database_url"],
                terminal=sys.stdout.isatty(),
            )
        )
