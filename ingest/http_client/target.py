"""The URL that a client posts to: what it must be."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from ingest.model.errors import ConfigError
from ingest.system.loopback import is_loopback_host


class Target(NamedTuple):
    """A URL. `shown` is its server: path and query may be secrets, so no log has them."""

    url: str
    shown: str


def target_of(
    url: str,
    *,
    plain_http: bool = False,
    name: str = "the target",
    instead: str = "sign the posts instead (--secret-file)",
) -> Target:
    """Return a checked URL. Raises ConfigError with a sentence for the user.

    Readings leave this machine only by https://, unless `plain_http` is set. `name` is what the
    user calls the URL, `instead` what to do without a password in it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:  # brackets without an IPv6 address, a port that is no number
        raise ConfigError(f"{name} cannot be read as a URL: {error}") from None
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigError(f"{name} is not http://HOST/.. or https://HOST/..")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"{name} has a character that a URL may not have: write it as %XX")
    if "@" in parts.netloc:
        raise ConfigError(
            f"{name} has a user or a password, which all users of this machine could read: "
            f"{instead}"
        )
    if parts.scheme == "http" and not (plain_http or is_loopback_host(host)):
        raise ConfigError(
            f"{name}: {host} would get the readings without TLS: use https://, or --plain-http if "
            "the network between is safe"
        )
    bracketed = f"[{host}]" if ":" in host else host
    return Target(url, f"{parts.scheme}://{bracketed}{f':{port}' if port else ''}")
