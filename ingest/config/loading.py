"""Reads the settings from all their origins, and checks them one by one and together.

A flag wins over the environment, that over the TOML file, and that over the default. A wrong value
raises a ConfigError that names the setting and its origin.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ingest.config.origins import gather
from ingest.config.settings import ROW_BYTES_MAX, Settings, split_address
from ingest.config.values import (
    check_database_url,
    check_header_name,
    check_monitor_urls,
    check_name,
    check_token,
    checked,
    duration_us,
    forward_names,
    host_names,
    moment_us,
    nearest,
    networks,
    shown,
    split_broker_url,
)
from ingest.model.errors import ConfigError

_COLUMNS = ("column_ts", "column_device_id", "column_metric", "column_value")


class Loaded(NamedTuple):
    """The settings, and the origin of each: `default`, a TOML path, an INGEST_ name, or a flag."""

    settings: Settings
    origins: dict[str, str]


def load(
    *,
    toml_path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    flags: Mapping[str, Any] | None = None,
) -> Loaded:
    """Read all origins and check every bound. Raises ConfigError with the setting and its origin.

    An empty variable of the environment counts as unset; an empty flag does not. Flags are texts,
    or have the type of their setting.
    """
    known = {each.name: each for each in fields(Settings)}
    flags = flags or {}
    for unknown in flags.keys() - known:
        raise ConfigError(f"there is no setting {unknown!r}{nearest(unknown, known)}")
    raw = gather(known, toml_path, environ, flags)
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known, "default")
    for name, (value, origin) in raw.items():
        values[name] = checked(known[name], value, origin)
        origins[name] = origin
    settings = Settings(**values)
    _check_texts(settings, origins)
    _check_together(settings, origins)
    return Loaded(settings, origins)


def _check_together(settings: Settings, origins: Mapping[str, str]) -> None:
    """Check the bounds between two settings. Raises ConfigError that names both."""

    def named(name: str) -> str:
        return f"{name} ({shown(name, getattr(settings, name))}, {origins[name]})"

    def ordered(*names: str, strict: bool = False) -> None:
        for lower, upper in pairwise(names):
            low, high = getattr(settings, lower), getattr(settings, upper)
            if low > high or (strict and low == high):
                relation = "be less than" if strict else "not exceed"
                raise ConfigError(f"setting {named(lower)} must {relation} {named(upper)}")

    ordered("post_rows_max", "batch_rows_max")
    ordered("post_rows_max", "buffer_rows_max")
    ordered("batch_rows", "batch_rows_max")
    ordered("body_bytes_max", "inflated_bytes_max")
    ordered("body_bytes_max", "receiver_bytes_max")
    # In half of a journal there is always room: what is done leaves it a file at a time.
    for buffer, share in (("buffer_bytes_max", 1), ("journal_bytes_max", 2)):
        if settings.post_rows_max * ROW_BYTES_MAX > getattr(settings, buffer) // share:
            raise ConfigError(
                f"setting {named('post_rows_max')} does not fit into {named(buffer)}: "
                f"a reading with long names takes {ROW_BYTES_MAX} bytes"
                + (", and a post may use half of the journal" if share > 1 else "")
            )
    if settings.drain_s_max:
        ordered("command_s_max", "drain_s_max", strict=True)
    if settings.client_certificate_header and not settings.trusted_proxies:
        raise ConfigError(
            f"setting {named('client_certificate_header')} needs trusted_proxies: from others "
            "such a header counts for nothing"
        )
    ordered("forward_lag_bytes_max", "stream_bytes_max")
    if bool(settings.tls_cert_file) != bool(settings.tls_key_file):
        raise ConfigError(f"setting {named('tls_cert_file')} needs {named('tls_key_file')}")
    apart = [*combinations(_COLUMNS, 2)]
    if split_address(settings.listen)[1]:  # port 0 is any free one
        apart.append(("listen", "admin_listen"))
    for name, other in apart:
        if getattr(settings, name) == getattr(settings, other):
            raise ConfigError(f"setting {named(name)} must differ from {named(other)}")


def _check_texts(settings: Settings, origins: Mapping[str, str]) -> None:
    """Check texts that must have a certain form. Never shows a URL that has a password."""
    for name, check in (
        ("listen", split_address),
        ("admin_listen", split_address),
        ("ts_min", moment_us),
        ("database_url", check_database_url),
        ("housekeeping_url", check_database_url),
        ("keep_hot", duration_us),
        ("keep_rollups", duration_us),
        ("admin_token", check_token),
        ("broker_url", split_broker_url),
        ("broker_monitor_url", check_monitor_urls),
        ("forwards", forward_names),
        ("trusted_proxies", networks),
        ("host_names", host_names),
        ("client_certificate_header", check_header_name),
        *((name, check_name) for name in ("table_schema", "table_name", *_COLUMNS)),
    ):
        value = getattr(settings, name)
        try:
            if value != Settings.__dataclass_fields__[name].default:  # some may be empty
                check(value)
        except ValueError as error:
            raise ConfigError(f"setting {name} ({origins[name]}): {error}") from None
