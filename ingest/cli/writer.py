"""`ingest writer`: takes messages of the stream of a broker, and writes them to PostgreSQL."""

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
    "ingest writer --broker-url nats://writer:..@nats1:4222 --broker-monitor-url http://nats1:8222 "
    "--database-url postgresql://ingest@db.example/metrics",
    "ingest writer --config /etc/iot-ingest/writer.toml",
)
EPILOG = "exit codes: 0 no reading was lost, 3 some were, 2 it could not start"


UNUSED = (
    *("listen", "body_bytes_max", "inflated_bytes_max", "receiver_bytes_max"),
    *("connections_max", "body_s_max", "keepalive_s_max", "ack_default"),
    *("access", "host_names", "tls_cert_file", "tls_key_file", "trusted_proxies"),
    *("client_certificate_header",),
    *("sender_readings_per_s_max", "sender_posts_per_s_max"),
    *("sender_connections_max",),
    *("ack_wait_s_max", "gateways"),
)
WORDS = {
    "database_url": "PostgreSQL to write to",
    "state_dir": "folder of the file `tokens`; empty: the default",
    "tokens_file": "file with tokens for the admin port; empty: `tokens` in the state folder",
}


def add_arguments(parser: Parser, _settings: SettingsFlags) -> None:
    """Add the settings."""
    role.add_arguments(parser, first=("database_url",), unused=UNUSED, words=WORDS)


def run(args: argparse.Namespace, loaded: Loaded) -> int:
    """Run the writer; return its exit code: 0 if no reading was lost, 3 if some were."""
    from ingest.app.stream_writer import StreamWriter  # noqa: PLC0415

    origin = loaded.origins["database_url"]

    async def run_writer(place: Place, say: role.Say) -> int:
        return await StreamWriter(place, say, origin).run()

    return role.run(args, loaded, "writer", run_writer)
