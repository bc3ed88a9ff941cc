"""Every setting, declared once: default, unit, bounds, reason. Defaults < TOML < env < flags.

A setting `batch_rows` is `batch_rows` in the TOML file, INGEST_BATCH_ROWS in the environment and
`--batch-rows` on the command line. A wrong value is a ConfigError that names it and its origin.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from ingest.errors import ConfigError

KIB, MIB, GIB = 1024, 1024**2, 1024**3
ENV_PREFIX = "INGEST_"


def setting(
    default: Any,
    why: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    one_of: tuple[str, ...] | None = None,
    secret: bool = False,
) -> Any:
    """Declare one setting; the unit is in its name."""
    return field(
        default=default,
        metadata={
            "why": why,
            "at_least": at_least,
            "at_most": at_most,
            "one_of": one_of,
            "secret": secret,
        },
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """All settings of the service; see each field's reason. Times in seconds, sizes in bytes."""

    # Where things are
    listen: str = setting("127.0.0.1:8080", "data port: HOST:PORT; port 0 takes a free one")
    admin_listen: str = setting("127.0.0.1:8081", "admin port: probes and metrics")
    state_dir: str = setting("", "embedded database and dead letters; empty: the usual place")
    database_url: str = setting("", "PostgreSQL to write to; empty: the embedded one", secret=True)
    schema_apply: bool = setting(True, "create a missing table at start, if the role may")
    log_level: str = setting("info", "least level", one_of=("debug", "info", "warning", "error"))

    # The door
    body_bytes_max: int = setting(MIB, "a post as sent", at_least=KIB, at_most=64 * MIB)
    inflated_bytes_max: int = setting(
        4 * MIB, "a post after gunzip: bombs end here", at_least=KIB, at_most=256 * MIB
    )
    post_rows_max: int = setting(
        5_000, "readings of one post; a block is never split", at_least=1, at_most=100_000
    )
    door_bytes_max: int = setting(
        64 * MIB, "bodies being received, all together; further ones wait unread", at_least=64 * KIB
    )
    connections_max: int = setting(
        20_000, "beyond it the oldest half-open one is closed", at_least=1
    )
    header_s_max: float = setting(10.0, "to send a request's head", at_least=0.05, at_most=600)
    body_s_max: float = setting(10.0, "to send a request's body", at_least=0.05, at_most=600)
    keepalive_s_max: float = setting(
        75.0, "an idle connection is kept: longer than a proxy's 60 s", at_least=0.05, at_most=3600
    )
    ts_min: str = setting("2000-01-01T00:00:00Z", "oldest accepted ts, RFC 3339")
    ts_ahead_s_max: float = setting(86_400.0, "newest accepted ts, from now", at_least=0)
    ack_default: str = setting(
        "best", "when a post does not ask", one_of=("best", "buffered", "durable", "committed")
    )
    ack_wait_s_max: float = setting(
        10.0, "?ack=committed waits at most", at_least=0.01, at_most=300
    )

    # The buffer
    buffer_rows_max: int = setting(100_000, "readings held in memory", at_least=1)
    buffer_bytes_max: int = setting(64 * MIB, "bytes held, waiting posts included", at_least=KIB)
    put_wait_s_max: float = setting(
        1.0, "a post waits for room: waiting beats refusing", at_least=0, at_most=60
    )
    full_s_min: float = setting(5.0, "no room for so long: /readyz says full", at_least=0)

    # Batches and writers
    batch_rows: int = setting(100, "a batch closes once so many wait", at_least=1)
    batch_rows_max: int = setting(5_000, "under backlog a batch grows to this", at_least=1)
    batch_linger_s: float = setting(0.02, "or so long after the first", at_least=0, at_most=10)
    writers: int = setting(2, "batches written at once, a connection each", at_least=1, at_most=64)
    write_method: str = setting(
        "copy", "binary COPY or multi-row INSERT", one_of=("copy", "insert")
    )
    connect_s_max: float = setting(5.0, "to connect and check the schema", at_least=0.1, at_most=60)
    lock_s_max: float = setting(3.0, "PostgreSQL's lock_timeout", at_least=0.05, at_most=600)
    statement_s_max: float = setting(
        10.0, "its statement_timeout: the server answers first", at_least=0.1, at_most=600
    )
    command_s_max: float = setting(
        15.0, "our own deadline of a write; then the connection is cut", at_least=0.1, at_most=600
    )
    schema_check_s: float = setting(
        10.0, "binary COPY does not check types: we do, every", at_least=0.1, at_most=3600
    )

    # When things fail
    retries_max: int = setting(8, "of a failing batch, then it is set aside", at_least=0)
    retry_s_max: float = setting(30.0, "cap of the backoff between them", at_least=0.01)
    wait_s_min: float = setting(0.1, "first pause while the server is away", at_least=0.001)
    wait_s_max: float = setting(10.0, "cap of that pause", at_least=0.001)
    hold_probe_s: float = setting(5.0, "on hold: try again every", at_least=0.01)
    unknown_tries_max: int = setting(5, "of an unknown SQLSTATE, then hold", at_least=1)
    breaker_window_rows: int = setting(1_000, "the breaker looks at the last rows", at_least=1)
    breaker_rows_max: int = setting(
        200, "more than so many of them refused, by many devices: hold", at_least=1
    )
    drain_s_max: float = setting(20.0, "at stop: time to empty the buffer", at_least=0, at_most=600)

    # Dead letters
    dlq_bytes_max: int = setting(GIB, "all files; the door may use half", at_least=64 * KIB)
    dlq_segment_bytes: int = setting(64 * MIB, "a file is finished at", at_least=4 * KIB)
    dlq_keep_days: float = setting(7.0, "finished and replayed files are kept", at_least=0)
    dlq_auto_replay: bool = setting(True, "retries_exhausted and drained come back by themselves")
    dlq_replay_rows_per_s: int = setting(2_000, "at most, slower than live ones", at_least=1)
    dlq_replay_pause_s: float = setting(5.0, "between looks for something to replay", at_least=0.01)
    disk_free_bytes_min: int = setting(
        64 * MIB, "free space of the state folder, below: disk_low; 0: never", at_least=0
    )


class Loaded(NamedTuple):
    """Settings and where each came from: `default`, a TOML path, an INGEST_ name, or a flag."""

    settings: Settings
    origins: dict[str, str]


def load(
    *,
    toml_path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, str] | None = None,
) -> Loaded:
    """Read all sources and check every bound. Raises ConfigError, naming setting and origin."""
    raw: dict[str, tuple[Any, str]] = {}
    known = {each.name: each for each in fields(Settings)}
    if toml_path is not None:
        for name, value in _read_toml(toml_path).items():
            if name not in known:
                raise ConfigError(f"{toml_path}: there is no setting {name!r}{_nearest(name)}")
            raw[name] = (value, str(toml_path))
    for name in known:
        variable = ENV_PREFIX + name.upper()
        if environ.get(variable, "") != "":
            raw[name] = (environ[variable], variable)
    for name, value in (flags or {}).items():
        raw[name] = (value, "--" + name.replace("_", "-"))
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, "default")
    for name, (value, origin) in raw.items():
        values[name] = _checked(known[name], value, origin)
        origins[name] = origin
    settings = Settings(**values)
    check_together(settings, origins)
    return Loaded(settings, origins)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _nearest(name: str) -> str:
    import difflib  # noqa: PLC0415  only on the way to an error message

    near = difflib.get_close_matches(name, [each.name for each in fields(Settings)], 1)
    return f"; did you mean {near[0]!r}?" if near else ""


_SIZE = re.compile(r"(\d+)\s*(KiB|MiB|GiB|k|M|G)", re.IGNORECASE)
_SIZES = {"kib": KIB, "mib": MIB, "gib": GIB, "k": KIB, "m": MIB, "g": GIB}


def _checked(declared: Field[Any], value: Any, origin: str) -> Any:
    """Turn text into the setting's type and check its own bounds."""
    name = declared.name
    kind: Any = type(declared.default)

    def wrong(what: str) -> ConfigError:
        shown = "***" if declared.metadata["secret"] else repr(value)
        return ConfigError(f"setting {name} ({origin}): {shown} {what}")

    if kind is bool:
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word not in {"true", "false", "1", "0", "yes", "no", "on", "off"}:
            raise wrong("is neither true nor false")
        return word in {"true", "1", "yes", "on"}
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise wrong(f"is not a {kind.__name__}")
    if kind is str:
        if not isinstance(value, str):
            raise wrong("is not text")
        choices = declared.metadata["one_of"]
        if choices and value not in choices:
            raise wrong(f"is none of {', '.join(choices)}")
        return value
    if isinstance(value, str) and kind is int and (size := _SIZE.fullmatch(value.strip())):
        value = int(size[1]) * _SIZES[size[2].lower()]
    try:
        number = kind(value)
    except ValueError:
        raise wrong("is not a whole number" if kind is int else "is not a number") from None
    if kind is int and number != value and not isinstance(value, str):
        raise wrong("is not a whole number")
    least, most = declared.metadata["at_least"], declared.metadata["at_most"]
    if number != number or abs(number) == float("inf"):
        raise wrong("is not a finite number")
    if least is not None and number < least:
        raise wrong(f"is too small: at least {least:g}")
    if most is not None and number > most:
        raise wrong(f"is too large: at most {most:g}")
    return number


def check_together(settings: Settings, origins: Mapping[str, str] | None = None) -> None:
    """Check the bounds that settings set each other. Raises ConfigError, naming both."""
    at = origins or {}

    def ordered(*names: str, strict: bool = False) -> None:
        for lower, upper in zip(names, names[1:], strict=False):
            low, high = getattr(settings, lower), getattr(settings, upper)
            if low > high or (strict and low == high):
                relation = "be less than" if strict else "not exceed"
                raise ConfigError(
                    f"setting {lower} ({low:g}, {at.get(lower, 'default')}) must {relation} "
                    f"{upper} ({high:g}, {at.get(upper, 'default')})"
                )

    ordered("post_rows_max", "batch_rows_max", "buffer_rows_max")
    ordered("batch_rows", "batch_rows_max")
    ordered("body_bytes_max", "inflated_bytes_max")
    ordered("body_bytes_max", "door_bytes_max")
    ordered("inflated_bytes_max", "buffer_bytes_max")
    ordered("lock_s_max", "statement_s_max", "command_s_max", strict=True)
    if settings.drain_s_max:
        ordered("command_s_max", "drain_s_max", strict=True)
    ordered("wait_s_min", "wait_s_max")
    ordered("dlq_segment_bytes", "dlq_bytes_max")
    ordered("breaker_rows_max", "breaker_window_rows")
    ts_min_us(settings)
    for name in ("listen", "admin_listen"):
        try:
            split_address(getattr(settings, name))
        except ValueError as error:
            raise ConfigError(f"setting {name} ({at.get(name, 'default')}): {error}") from None


def ts_min_us(settings: Settings) -> int:
    """Return `ts_min` as Unix microseconds. Raises ConfigError if it is not RFC 3339."""
    try:
        oldest = datetime.fromisoformat(settings.ts_min)
    except ValueError:
        raise ConfigError(f"setting ts_min: {settings.ts_min!r} is not RFC 3339") from None
    if oldest.tzinfo is None:
        raise ConfigError(f"setting ts_min: {settings.ts_min!r} has no offset; append Z")
    return int(oldest.timestamp()) * 1_000_000 + oldest.microsecond


def split_address(address: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `[v6]:PORT`. Raises ValueError with a sentence about it."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError(f"{address!r} is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the usual state folder: systemd's, root's under /var/lib, or the user's XDG one."""
    if systemd := environ.get("STATE_DIRECTORY"):
        return Path(systemd.split(":", 1)[0])
    if os.geteuid() == 0:
        return Path("/var/lib/iot-ingest")
    base = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME", "~")) / ".local/state")
    return Path(base).expanduser() / "iot-ingest"


def state_dir(settings: Settings) -> Path:
    """Return the state folder in force, absolute."""
    if settings.state_dir:
        return Path(settings.state_dir).expanduser().absolute()
    return default_state_dir()


def secret_names() -> set[str]:
    """Return the settings whose values are never printed."""
    return {each.name for each in fields(Settings) if each.metadata["secret"]}


assert all(each.default is not MISSING for each in fields(Settings)), "every setting has a default"
