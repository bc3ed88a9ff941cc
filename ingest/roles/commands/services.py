"""`ingest up`, `gateway` and `writer`: they run on uvloop until a signal ends them."""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ingest.cli.parser import MOST_USED, AllSettings, Command, flag, say
from ingest.cli.serve import EXIT_CODES, collect_rarely, of_terminal, on_uvloop
from ingest.config.loading import Loaded

if TYPE_CHECKING:
    from ingest.roles.role import Place

ABOUT_UP = f"""\
--writers is the number of processes that write. --writer-connections is the setting `writers`
(INGEST_WRITERS): the connections of each of them.
SIGHUP restarts one process after the other; no connection is refused meanwhile.

{EXIT_CODES}, 1 a part ended badly"""

# Settings that a command does not read. Other roles, which may have the same file, read them.
UNUSED_BY_UP = ("buffer", "journal_bytes_max", "dlq_keep_days")  # the broker keeps all of it
UNUSED_BY_ROLES = (*UNUSED_BY_UP, "writer_processes", "disk_free_bytes_min", "journal_unsafe")
UNUSED_BY_GATEWAY = (
    *UNUSED_BY_ROLES,
    *("database_url", "database_url_file", "database_unsafe", "schema_apply"),
    *("stream_keep_s", "forward_lag_bytes_max", "batch_rows", "batch_linger_s", "writers"),
    *("write_method", "connect_s_max", "command_s_max", "schema_check_s"),
    *("retries_max", "wait_s_max"),
    *("dlq_replay_rows_per_s", "table_schema", "column_ts", "column_device_id", "column_metric"),
    *("column_value", "partition_span", "partitions_max", "keep_hot", "archive_dir"),
    *("housekeeping", "housekeeping_url", "housekeeping_url_file", "rollups", "keep_rollups"),
)
UNUSED_BY_WRITER = (
    *UNUSED_BY_ROLES,
    *("listen", "body_bytes_max", "inflated_bytes_max", "receiver_bytes_max"),
    *("connections_max", "body_s_max", "keepalive_s_max", "ack_default"),
    *("access", "host_names", "tls_cert_file", "tls_key_file", "trusted_proxies"),
    *("client_certificate_header",),
    *("sender_readings_per_s_max", "sender_posts_per_s_max"),
    *("sender_connections_max",),
    *("ack_wait_s_max", "gateways"),
)
ACK_DEFAULT = "ack of a post without ?ack; best: durable"
OF_ROLES = {
    "broker_url": "NATS servers, nats://USER:PASSWORD@HOST:PORT,HOST:PORT",
    "state_dir": "folder of the file `tokens`; empty: the default",
}
FIRST_OF_ROLES = ("admin_listen", "broker_url", "broker_monitor_url")
CONTROL = flag("--control-fd", type=int, default=None, help=argparse.SUPPRESS)  # for `ingest up`


def _up(_args: argparse.Namespace, loaded: Loaded) -> int:
    from ingest.roles.supervisor.up import up  # noqa: PLC0415

    return on_uvloop(up(loaded.settings, **of_terminal(loaded)))


def _gateway(args: argparse.Namespace, loaded: Loaded) -> int:
    from ingest.roles.gateway import Gateway  # noqa: PLC0415

    collect_rarely()
    return on_uvloop(
        _run_role(args, loaded, "gateway", lambda place, tell: Gateway(place, tell).run())
    )


def _writer(args: argparse.Namespace, loaded: Loaded) -> int:
    from ingest.roles.writer import StreamWriter  # noqa: PLC0415

    origin = loaded.origins["database_url"]
    collect_rarely()
    return on_uvloop(
        _run_role(
            args, loaded, "writer", lambda place, tell: StreamWriter(place, tell, origin).run()
        )
    )


async def _run_role(
    args: argparse.Namespace,
    loaded: Loaded,
    role: str,
    run: Callable[[Place, Callable[[str], None]], Awaitable[int]],
) -> int:
    """Run a role alone, or with what `ingest up` sends by the control channel."""
    from ingest.roles.role import alone, led  # noqa: PLC0415
    from ingest.roles.supervisor.child import ControlChannel  # noqa: PLC0415
    from ingest.system import logs  # noqa: PLC0415
    from ingest.system.process_setup import raise_open_files_limit  # noqa: PLC0415

    if args.control_fd is None:
        settings = loaded.settings
        logs.configure(settings.log_level, form=settings.log_format)
        raise_open_files_limit()
        return await run(alone(settings, role), say)
    async with await ControlChannel.inherited(args.control_fd) as channel:
        place = await led(channel)
        logs.configure(
            place.settings.log_level, form=place.settings.log_format, instance=place.instance
        )
        raise_open_files_limit()
        return await run(place, lambda _line: None)


COMMANDS = {
    "up": Command(
        examples=(
            "ingest up --gateways 2",
            "ingest up --gateways 4 --writers 2 --listen 0.0.0.0:8080",
        ),
        run=_up,
        epilog=ABOUT_UP,
        settings=AllSettings(
            first=(*MOST_USED, "gateways"),
            renamed={"writers": "writer_processes", "writer_connections": "writers"},
            unused=UNUSED_BY_UP,
            words={
                "state_dir": "folder of broker and database; empty: the default",
                "ack_default": ACK_DEFAULT,
                "journal_unsafe": "accept a file system that loses data at a restart, such as "
                "tmpfs",
            },
        ),
    ),
    "gateway": Command(
        examples=(
            "ingest gateway --broker-url nats://gateway:..@nats1:4222 --broker-monitor-url "
            "http://nats1:8222",
            "ingest gateway --listen 0.0.0.0:8080 --tokens-file /etc/iot-ingest/tokens "
            "--broker-url nats://gateway:..@nats1,nats2,nats3",
        ),
        run=_gateway,
        flags=(CONTROL,),
        epilog=EXIT_CODES,
        settings=AllSettings(
            first=(*FIRST_OF_ROLES, "listen"),
            unused=UNUSED_BY_GATEWAY,
            words=OF_ROLES | {"ack_default": ACK_DEFAULT},
        ),
    ),
    "writer": Command(
        examples=(
            "ingest writer --broker-url nats://writer:..@nats1:4222 --broker-monitor-url "
            "http://nats1:8222 --database-url postgresql://ingest@db.example/metrics",
            "ingest writer --config /etc/iot-ingest/writer.toml",
        ),
        run=_writer,
        flags=(CONTROL,),
        epilog=EXIT_CODES,
        settings=AllSettings(
            first=(*FIRST_OF_ROLES, "database_url"),
            unused=UNUSED_BY_WRITER,
            words=OF_ROLES
            | {
                "database_url": "PostgreSQL to write to",
                "tokens_file": "file with tokens for the admin port; empty: `tokens` in the state "
                "folder",
            },
        ),
    ),
}
