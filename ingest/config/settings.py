"""Every setting, declared once: its default, its bounds and its meaning. The name has the unit.

A setting `batch_rows` is `batch_rows` in the TOML file, INGEST_BATCH_ROWS in the environment and
`--batch-rows` on the command line. loading.py reads them.
Their texts are printed from these declarations: the help, the tables of the documents, and two
example files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import Field, dataclass, fields
from typing import Any

from ingest.config.values import GIB, KIB, MIB, TIB, env_name, setting, shown, unit
from ingest.model.reading import NAME_BYTES_MAX

ROW_BYTES_MAX = 34 + 2 * NAME_BYTES_MAX  # of one row (model/block.py shows its layout)
HOLD_PROBE_S_MAX = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All settings of the service, each with its meaning. Times in seconds, sizes in bytes."""

    listen: str = setting(
        "127.0.0.1:8080",
        "data port, HOST:PORT; port 0: any free port",
        opens="Addresses, folders, database",
    )
    access: str = setting(
        "auto",
        "who may post; auto: without tokens everybody on the loopback, and no start beyond it",
        one_of=("auto", "token", "open"),
    )
    tokens_file: str = setting("", "file of the tokens; empty: `tokens` in the state folder")
    host_names: str = setting(
        "", "names of the data port whose own pages may post without a token; with commas"
    )
    admin_listen: str = setting("127.0.0.1:8081", "admin port: probes, metrics, dashboard")
    admin_token: str = setting(
        "", "token for the dashboard and its actions; empty: a new one at each start", secret=True
    )
    admin_token_file: str = setting("", "file that contains admin_token")
    state_dir: str = setting("", "folder of journal, dead letters, database; empty: the default")
    database_url: str = setting("", "PostgreSQL to write to; empty: the embedded one", secret=True)
    database_url_file: str = setting(
        "", "file that contains database_url; read again at each connect"
    )
    database_unsafe: bool = setting(False, "accept a PostgreSQL that can lose rows in a crash")
    table_schema: str = setting(
        "", "schema of the table; empty: the first one in the search_path that has the table"
    )
    table_name: str = setting("readings", "name of the table, without quotes")
    column_ts: str = setting("ts", "column for the time, timestamptz")
    column_device_id: str = setting("device_id", "column for the device, text")
    column_metric: str = setting("metric", "column for the metric, text")
    column_value: str = setting("value", "column for the value, double precision")
    schema_apply: bool = setting(True, "create a missing table at start, if the role may")
    log_level: str = setting(
        "info", "lowest level that is logged", one_of=("debug", "info", "warning", "error")
    )
    log_format: str = setting("auto", "auto: text on a terminal", one_of=("auto", "json", "text"))

    body_bytes_max: int = setting(
        MIB,
        "largest body of a post, as it was sent",
        within=(KIB, 64 * MIB),
        opens="The receiver",
    )
    inflated_bytes_max: int = setting(
        4 * MIB, "largest body after decompression", within=(KIB, 256 * MIB)
    )
    post_rows_max: int = setting(5_000, "most readings in one post", within=(1, 100_000))
    line_device_tags: str = setting(
        "device_id,device,dev_eui,entity_id,node,uuid,host",
        "tags of line protocol for the device; the first that a line has counts",
    )
    line_prefix: bool = setting(
        False, "begin metrics of line protocol with the name of the database or bucket"
    )
    line_escapes: str = setting(
        "influxdb",
        "backslashes in names of line protocol: questdb reads two as one",
        one_of=("influxdb", "questdb"),
    )
    sources_file: str = setting(
        "", "file with the sources: a `[[source]]` table for each sender with JSON of its own"
    )
    tables_file: str = setting(
        "", "file with the tables with columns: `[[table]]` for values of one device and time"
    )
    receiver_bytes_max: int = setting(
        64 * MIB,
        "memory for all bodies that are being received; 3/4 of it for those over 16 KiB",
        within=(64 * KIB, 64 * GIB),
    )
    connections_max: int = setting(
        20_000,
        "most connections; above it a slow or idle one is closed for each new one",
        within=(1, 1_000_000),
    )
    body_s_max: float = setting(
        10.0,
        "time for a body to arrive; headers, with a TLS handshake: the same, at most 10 s",
        within=(2, 600),
    )
    keepalive_s_max: float = setting(
        75.0,
        "idle connections are closed after this; longer than a proxy's 60 s",
        within=(0.05, 3600),
    )
    tls_cert_file: str = setting(
        "", "the data port's certificate, PEM, read again on change; with it the port speaks TLS"
    )
    tls_key_file: str = setting("", "private key of tls_cert_file, PEM without a password")
    sender_readings_per_s_max: float = setting(
        0.0,
        "most readings a second of one token, or of a network without; 0: no limit",
        within=(0, 1e9),
    )
    sender_posts_per_s_max: float = setting(
        0.0,
        "most posts a second of one token, or of a network without; 0: no limit",
        within=(0, 1e9),
    )
    sender_connections_max: int = setting(
        0,
        "most connections of one token, or of a network without; 0: no limit",
        within=(0, 1_000_000),
    )
    trusted_proxies: str = setting(
        "", "addresses or networks of proxies whose X-Forwarded-For counts; with commas"
    )
    client_certificate_header: str = setting(
        "", "header in which a trusted proxy sends the name in a client's certificate; empty: none"
    )
    ts_min: str = setting("2000-01-01T00:00:00Z", "oldest ts that is accepted, RFC 3339")
    ts_ahead_s_max: float = setting(86_400.0, "how far ahead of now a ts may be", within=(0, 3.2e9))
    value_inexact: str = setting(
        "refuse", "an integer that float64 cannot hold: refuse or round", one_of=("refuse", "round")
    )
    ack_default: str = setting(
        "best",
        "ack of a post without ?ack; best: durable with the journal, else buffered",
        one_of=("best", "buffered", "durable", "committed"),
    )
    ack_wait_s_max: float = setting(
        10.0, "how long a post with ?ack=committed waits before 503", within=(0.01, 300)
    )

    buffer: str = setting(
        "journal",
        "journal: kept on the disk; memory: lost with the process",
        one_of=("journal", "memory"),
        opens="The buffer",
    )
    buffer_rows_max: int = setting(200_000, "most readings in memory", within=(1, 100_000_000))
    buffer_bytes_max: int = setting(
        64 * MIB, "most bytes of blocks in memory", within=(KIB, 64 * GIB)
    )
    journal_bytes_max: int = setting(
        8 * GIB,
        "largest size of the journal",
        within=(16 * KIB, 16 * TIB),
    )
    journal_unsafe: bool = setting(False, "accept a file system that loses data at a restart")

    broker_url: str = setting(
        "",
        "NATS servers, nats://USER:PASSWORD@HOST:PORT,HOST:PORT; empty: the embedded one",
        secret=True,
        opens="The broker",
    )
    broker_url_file: str = setting("", "file that contains broker_url")
    broker_ca_file: str = setting(
        "", "certificates that tls:// servers are checked with; empty: the system's"
    )
    broker_monitor_url: str = setting(
        "", "monitor ports of these servers, http://HOST:8222, with commas; shows how they sync"
    )
    broker_unsafe: bool = setting(False, "accept a broker that may lose readings in a power cut")
    stream_replicas: int = setting(1, "copies of the stream, each on another server", within=(1, 5))
    stream_bytes_max: int = setting(
        8 * GIB,
        "largest size of the stream; the broker reserves this space",
        within=(MIB, 16 * TIB),
    )
    stream_keep_s: float = setting(
        0.0, "how long the stream keeps what has been written", within=(0, 31_536_000)
    )
    forwards: str = setting("", "forwarders whose readings the stream keeps; names, with commas")
    forward_lag_bytes_max: int = setting(
        0,
        "a forwarder further behind skips messages; 0: half of stream_bytes_max",
        within=(0, 16 * TIB),
    )

    gateways: int = setting(
        1, "processes of `up` that take posts", within=(1, 256), opens="Processes of `up`"
    )
    writer_processes: int = setting(
        1, "processes of `up` that write; the flag of `up` is --writers", within=(1, 64)
    )

    batch_rows: int = setting(
        100,
        "a batch closes at this many readings, if the one before was closed batch_linger_s ago",
        within=(1, 1_000_000),
        opens="Batches, writers",
    )
    batch_rows_max: int = setting(
        20_000, "largest batch, reached when many readings wait", within=(1, 1_000_000)
    )
    batch_linger_s: float = setting(
        0.1,
        "a batch that no post waits for closes this long after its first reading",
        within=(0, 10),
    )
    writers: int = setting(2, "batches written at once, one connection each", within=(1, 64))
    write_method: str = setting(
        "copy", "write by binary COPY or by multi-row INSERT", one_of=("copy", "insert")
    )
    connect_s_max: float = setting(5.0, "time to connect and check the table", within=(0.1, 60))
    command_s_max: float = setting(
        15.0,
        "deadline of a write; PostgreSQL gets 2/3 of it for a statement, 1/5 to wait for a lock",
        within=(1, 600),
    )
    schema_check_s: float = setting(10.0, "pause between checks of the table", within=(0.1, 3600))

    retries_max: int = setting(
        8,
        "after so many failed retries a post's readings go to the dead letters",
        within=(0, 1_000),
        opens="Failures",
    )
    wait_s_max: float = setting(
        10.0,
        "longest pause between tries of the database; half of it, at most 5 s, on hold",
        within=(0.1, 600),
    )
    drain_s_max: float = setting(20.0, "at a stop: time to empty the buffer", within=(0, 600))

    dlq_bytes_max: int = setting(
        GIB,
        "most bytes of files or stream; for invalid items 1/2, for retries_exhausted 3/4",
        within=(4 * MIB, 16 * TIB),
        opens="Dead letters",
    )
    dlq_keep_days: float = setting(
        7.0, "files are kept this long when each entry is replayed or discarded", within=(0, 36_500)
    )
    dlq_auto_replay: bool = setting(True, "replay retries_exhausted and drained automatically")
    dlq_replay_rows_per_s: int = setting(
        2_000, "rate of the automatic replay", within=(1, 10_000_000)
    )
    disk_free_bytes_min: int = setting(
        64 * MIB, "with less free space posts get 503 disk_low; 0: no check", within=(0, 16 * TIB)
    )

    partition_span: str = setting(
        "day",
        "a new table has a partition for each day or month (UTC); none: it is one plain table",
        one_of=("none", "day", "month"),
        opens="The table, for years",
    )
    partitions_max: int = setting(
        4_000,
        "most partitions; late readings get half of the rest a day, then wait as dead letters",
        within=(10, 100_000),
    )
    keep_hot: str = setting(
        "", "how long readings stay in the table, such as 30d, 12h, 8w or 2y; empty: for ever"
    )
    archive_dir: str = setting(
        "", "folder for Parquet files of readings that leave the table; empty: they are dropped"
    )
    housekeeping_url: str = setting(
        "",
        "URL with the role that owns the table, for the housekeeping; empty: database_url",
        secret=True,
    )
    housekeeping_url_file: str = setting(
        "", "file that contains housekeeping_url; read again at each connect"
    )
    housekeeping: bool = setting(
        True, "the service does the housekeeping; false: a timer must run `ingest housekeeping run`"
    )
    rollups: bool = setting(
        False, "compute count, least, greatest, sum, first, last for each hour, day and series"
    )
    keep_rollups: str = setting("", "how long rollups stay, such as 2y; empty: for ever")


def hold_probe_s(settings: Settings) -> float:
    """Return the pause between tries of the database while writes are paused."""
    return min(HOLD_PROBE_S_MAX, settings.wait_s_max / 2)


def split_address(address: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `[v6]:PORT`. Raises ValueError with a sentence for the user."""
    host, colon, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise ValueError(f"{address!r} is not HOST:PORT (all interfaces: 0.0.0.0:PORT)")
    if ":" in bare and bare == host:
        raise ValueError(f"{address!r} needs brackets around its host: [{host}]:{port}")
    return bare, int(port)


# The settings whose values are never printed.
SECRETS = frozenset(each.name for each in fields(Settings) if each.metadata["secret"])


def groups() -> Iterable[tuple[str, list[Field[Any]]]]:
    """Return (title, settings) in the order of their declaration."""
    title, found = "", dict[str, list[Field[Any]]]()
    for each in fields(Settings):
        title = each.metadata["opens"] or title
        found.setdefault(title, []).append(each)
    return found.items()


def default_text(declared: Field[Any]) -> str:
    """Return a default for people: `64 MiB`, or `empty`."""
    return shown(declared.name, declared.default) or "empty"


def bounds_text(declared: Field[Any]) -> str:
    """Return the allowed values: `1 KiB to 64 MiB`, `copy, insert`, `true, false`, or nothing."""
    if declared.metadata["one_of"]:
        return ", ".join(declared.metadata["one_of"])
    if isinstance(declared.default, bool):
        return "true, false"
    if declared.metadata["within"] is None:
        return ""
    word = unit(declared.name)
    least, most = (shown(declared.name, each) for each in declared.metadata["within"])
    if word != "bytes" or least == "0 bytes":
        least = least.removesuffix(word).strip()
    return f"{least} to {most}"


def metavar(declared: Field[Any]) -> str:
    """Return the placeholder of a value in --help."""
    if declared.metadata["one_of"] or isinstance(declared.default, bool):
        return bounds_text(declared).replace(", ", "|")
    words = {"bytes": "BYTES", "rows": "ROWS", "s": "SECONDS", "days": "DAYS", "rows/s": "ROWS"}
    return words.get(unit(declared.name), "TEXT" if isinstance(declared.default, str) else "N")


def help_text(declared: Field[Any], why: str = "") -> str:
    """Return one line for --help: the meaning (or `why`), the default, the bounds."""
    limits = "" if declared.metadata["within"] is None else bounds_text(declared)
    bounds = f"[{default_text(declared)}{'; ' + limits if limits else ''}]"
    return f"{why or declared.metadata['why']} {bounds}"


def env_example() -> str:
    """Return a file of environment variables with every default, commented out."""
    head = (
        "# Settings of iot-ingest as environment variables; each line shows its default.\n"
        "# Sizes may be written as 64MiB. Printed by `ingest config --env`.\n"
    )
    return head + _example(lambda each: f"#{env_name(each.name)}={plain(each.default)}")


def toml_example() -> str:
    """Return a TOML file with every default, commented out."""
    head = (
        "# Settings of iot-ingest, for `--config FILE` or INGEST_CONFIG; each line shows its\n"
        '# default. Sizes may be written as "64MiB". Printed by `ingest config --toml`.\n'
    )
    return head + _example(lambda each: f"#{each.name} = {json.dumps(each.default)}")


def _example(line: Callable[[Field[Any]], str]) -> str:
    text = ""
    for title, members in groups():
        text += f"\n# ---- {title}\n"
        for each in members:
            limits = bounds_text(each)
            text += f"\n# {each.metadata['why']}{'; ' + limits if limits else ''}\n{line(each)}\n"
    return text


def plain(value: Any) -> str:
    """Write a value as the environment and a script take it: `true`, `100000`."""
    return str(value).lower() if isinstance(value, bool) else str(value)
