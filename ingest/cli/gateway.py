"""`ingest gateway`: takes posts, and publishes them to the stream of a broker."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ingest.cli import role
from ingest.cli.parser import Parser, SettingsFlags
from ingest.config.loading import Loaded

if TYPE_CHECKING:
    from ingest.app.role import Place

TAKES = "[options]"
EXAMPLES = (
    "ingest gateway --broker-url nats://gateway:..@nats1:4222 --broker-monitor-url "
    "http://nats1:8222",
    "ingest gateway --listen 0.0.0.0:8080 --tokens-file /etc/iot-ingest/tokens "
    "--broker-url nats://gateway:..@nats1,nats2,nats3",
)
EPILOG = "exit codes: 0 no reading was lost, 3 some were, 2 it could not start"


UNUSED = (
    *("database_url", "database_url_file", "database_unsafe", "schema_apply"),
    *("stream_keep_s", "forward_lag_bytes_max", "batch_rows", "batch_linger_s", "writers"),
    *("write_method", "connect_s_max", "command_s_max", "schema_check_s"),
    *("retries_max", "wait_s_max"),
    "dlq_replay_rows_per_s",
)
WORDS = {
    "ack_default": "ack of a post without ?ack; best: durable",
    "state_dir": "folder of the file `tokens`; empty: the default",
}


def add_arguments(parser: Parser, _settings: SettingsFlags) -> None:
    """Add the settings."""
    role.add_arguments(parser, first=("listen",), unused=UNUSED, words=WORDS)


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run the gateway; return its exit code: 0 if no reading was lost, 3 if some were."""
    from ingest.app.gateway import Gateway  # noqa: PLC0415

    async def run_gateway(place: Place, say: role.Say) -> int:
        return await Gateway(place, say).run()

    return role.run(args, loaded, "gateway", run_gateway)
