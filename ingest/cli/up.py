"""`ingest up`: runs gateways, a broker, writers and a database on uvloop until a signal ends it."""

from __future__ import annotations

import argparse
import sys

from ingest.cli.parser import MOST_USED, Parser, SettingsFlags, add_all_settings
from ingest.cli.terminal import say
from ingest.config.loading import Loaded

TAKES = "[options]"
EXAMPLES = (
    "ingest up --gateways 2",
    "ingest up --gateways 4 --writers 2 --listen 0.0.0.0:8080",
)
EPILOG = """\
--writers is the number of processes that write. --writer-connections is the setting `writers`
(INGEST_WRITERS): the connections of each of them.
SIGHUP restarts one process after the other; no connection is refused meanwhile.

exit codes: 0 no reading was lost, 3 some were, 2 it could not start, 1 a part ended badly"""

RENAMED = {"writers": "writer_processes", "writer_connections": "writers"}  # by flag
UNUSED = (  # they are those of `serve`: here the broker keeps readings and dead letters
    *("buffer", "journal_bytes_max"),
    "dlq_keep_days",
)
WORDS = {
    "state_dir": "folder of broker and database; empty: the default",
    "ack_default": "ack of a post without ?ack; best: durable",
    "journal_unsafe": "accept a file system that loses data at a restart, such as tmpfs",
}


def add_arguments(parser: Parser, _settings: SettingsFlags) -> None:
    """Add the settings: the command has no other flags."""
    add_all_settings(
        parser, first=(*MOST_USED, "gateways"), renamed=RENAMED, unused=UNUSED, words=WORDS
    )


def run(_args: argparse.Namespace, loaded: Loaded) -> int:
    """Run all of it; return the exit code: 0 if no reading was lost, 3 if some were."""
    import asyncio  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    from ingest.app.up import up  # noqa: PLC0415

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(
            up(
                loaded.settings,
                announce=say,
                url_origin=loaded.origins["database_url"],
                terminal=sys.stdout.isatty(),
            )
        )
