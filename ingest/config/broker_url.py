"""The URL of the broker: how it is read and checked."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

NATS_PORT = 4222


def split_broker_url(url: str) -> tuple[tuple[str, ...], str, str]:
    """Return servers, user and password of `nats://user:password@host:4222,host2:4222`.

    Each server is a URL without user and password, with its port. Raises ValueError with a sentence
    for the user.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"nats", "tls"}:
        raise ValueError("does not begin with nats:// or tls://")
    login, _, hosts = rest.rpartition("@")
    user, _, password = login.partition(":")
    servers = tuple(f"{scheme}://{each.strip()}" for each in hosts.rstrip("/").split(","))
    unreadable = any(mark in login for mark in "@/?#")
    named = []
    try:
        for each in map(urlsplit, servers):
            unreadable |= bool(each.path or each.query or not each.hostname)
            named.append(f"{scheme}://{each.hostname}:{each.port or NATS_PORT}")
    except ValueError:
        unreadable = True
    if unreadable:
        raise ValueError(
            "cannot be read as a URL; in a password write / as %2F, ? as %3F, # as %23 and @ as %40"
        )
    return tuple(named), unquote(user), unquote(password)


def check_monitor_urls(urls: str) -> None:
    """Raise ValueError if these are no URLs with commas between them."""
    for each in filter(None, urls.split(",")):
        parts = urlsplit(each.strip())
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{each!r} is not http://HOST:PORT")
