"""The value of one setting: how it is declared, read, checked and shown.

The unit of a setting is the end of its name. The settings themselves are in settings.py. Texts with
a form of their own are checked and taken apart here too: URLs of the database and the broker,
times, networks, names of hosts, headers and forwarders. A ValueError is a sentence for the user,
which goes on behind the setting's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import Field, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from ingest.model.errors import ConfigError

KIB, MIB, GIB, TIB = 1024, 1024**2, 1024**3, 1024**4
ENV_PREFIX = "INGEST_"
TOKEN_CHARACTERS_MIN = 16
NATS_PORT = 4222
_NAME_BYTES_MAX = 63  # PostgreSQL cuts longer names silently

_UNITS = (
    ("_rows_per_s", "rows/s"),
    ("_readings_per_s", "readings/s"),
    ("_posts_per_s", "posts/s"),
    ("_bytes", "bytes"),
    ("_rows", "rows"),
    ("_days", "days"),
    ("_s", "s"),
)
_SIZE = re.compile(r"(\d+)\s*(KiB|MiB|GiB|TiB|k|M|G|T)", re.IGNORECASE)
_SIZE_UNITS = {"k": KIB, "m": MIB, "g": GIB, "t": TIB}
_SECRET_PARAMETER = re.compile("pass|pwd", re.IGNORECASE)
_BOOLEANS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DURATION = re.compile(r"([1-9]\d{0,5})\s*([hdwy])")
_HOURS = {"h": 1, "d": 24, "w": 7 * 24, "y": 365 * 24}
_HEADER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
# Each of these headers has a meaning of its own.
_OTHER_HEADERS = frozenset(
    {"authorization", "x-api-key", "x-auth-token", "x-forwarded-for", "host", "content-length"}
)
_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_FORWARD_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")


def setting(
    default: Any,
    why: str,
    *,
    within: tuple[float, float] | None = None,
    one_of: tuple[str, ...] | None = None,
    secret: bool = False,
    opens: str | None = None,
) -> Any:
    """Declare one setting; the unit is in its name. Every number has a least and a most value.

    `opens` is the title of the group of settings that begins with this one.
    """
    extra = {"why": why, "within": within, "one_of": one_of, "secret": secret, "opens": opens}
    return field(default=default, metadata=extra)


def check_token(token: str) -> None:
    """Check a token's length and characters. Raises ValueError, without the token."""
    printable = token.isascii() and token.isprintable() and " " not in token
    if token and not (len(token) >= TOKEN_CHARACTERS_MIN and printable):
        raise ValueError(f"needs at least {TOKEN_CHARACTERS_MIN} printable ASCII characters")


def checked(declared: Field[Any], value: Any, origin: str) -> Any:
    """Turn a source's value into the setting's type and check its bounds. Raises ConfigError."""
    kind: Any = type(declared.default)
    try:
        if kind is bool:
            return _as_bool(value)
        if kind is str:
            return _as_text(value, declared.metadata["one_of"])
        return _as_number(value, kind, declared)
    except ValueError as error:
        shown = "***" if declared.metadata["secret"] and value is not None else _quoted(value)
        raise ConfigError(f"setting {declared.name} ({origin}): {shown} {error}") from None


def full_path(named: str) -> Path:
    """Return the absolute path of a text; `~` is the home folder. Raises ConfigError."""
    try:
        return Path(named).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(f"{named}: no such user, or one without a home folder") from None


def _quoted(value: Any) -> str:
    try:
        shown = repr(value)
    except ValueError:  # Python does not print a number of more than 4,300 digits
        return "the value"
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _as_bool(value: Any) -> bool:
    if isinstance(value, bool | int | str) and (word := str(value).strip().lower()) in _BOOLEANS:
        return _BOOLEANS[word]
    raise ValueError("is neither true nor false")


def _as_text(value: Any, choices: tuple[str, ...] | None) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("is not text")
    if choices is None:
        return value
    if (word := value.strip().lower()) not in choices:
        raise ValueError(f"is none of {', '.join(choices)}")
    return word


def _as_number(value: Any, kind: type, declared: Field[Any]) -> float:
    is_size = "_bytes" in declared.name
    what = "is not a whole number" if kind is int else "is not a number"
    if is_size:
        what += " of bytes, KiB, MiB, GiB or TiB (as in 64MiB)"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(what)
    sized = isinstance(value, str) and is_size and _SIZE.fullmatch(value.strip())
    if sized:
        value = int(sized[1]) * _SIZE_UNITS[sized[2][0].lower()]
    try:
        number: float = kind(value)
    except (ValueError, OverflowError):  # 1e400 and infinity overflow
        raise ValueError(what) from None
    if kind is int and isinstance(value, float) and number != value:
        raise ValueError(what)
    least, most = declared.metadata["within"]
    if not least <= number:  # also true of NaN
        raise ValueError(f"is too small: at least {shown(declared.name, least)}")
    if number > most:
        raise ValueError(f"is too large: at most {shown(declared.name, most)}")
    return number


def env_name(name: str) -> str:
    """Return the variable of the environment that sets `name`."""
    return ENV_PREFIX + name.upper()


def flag_name(name: str) -> str:
    """Return the flag that sets `name`."""
    return "--" + name.replace("_", "-")


def nearest(name: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """Return `; did you mean ..?` for a misspelt setting, or nothing; `spell` writes the name."""
    import difflib  # noqa: PLC0415  only error messages need it

    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {spell(near[0])}?" if near else ""


def unit(name: str) -> str:
    """Return the unit at the end of a setting's name: `s`, `bytes`, `rows`, .. or nothing."""
    stem = name.removesuffix("_max").removesuffix("_min")
    return next((word for ending, word in _UNITS if stem.endswith(ending)), "")


def shown(name: str, value: Any) -> str:
    """Write a value for people: `64 MiB`, `100,000 rows`, `0.02 s`, `true`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    word = unit(name)
    if word == "bytes" and value:
        for size, letters in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
            if value % size == 0:
                return f"{value // size:,.0f} {letters}"
    number = f"{value:,.0f}" if value == int(value) else repr(value)
    return f"{number} {word}".rstrip()


def mask_url(url: str) -> str:
    """Return a database URL without its password, which may be in the user part or in the query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "***"
    if is_torn(parts):
        return "***"
    user, at, hosts = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    query = [
        (key, "***" if _SECRET_PARAMETER.search(key) else value)
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
    ]
    netloc = f"{name}{':***' if colon else ''}{at}{hosts}"
    return urlunsplit(parts._replace(netloc=netloc, query=urlencode(query, safe="/*:")))


def is_torn(parts: SplitResult) -> bool:
    """Whether an unescaped / ? # or @ in the password has split the URL at the wrong place."""
    return "@" in parts.path + parts.query + parts.fragment or parts.netloc.count("@") > 1


def check_database_url(url: str) -> None:
    """Raise ValueError with a sentence for the user if `url` cannot be a URL of PostgreSQL."""
    if url and not url.startswith(("postgresql://", "postgres://")):
        raise ValueError("does not begin with postgresql://")
    try:
        parts = urlsplit(url)
        several = "," in parts.netloc  # several hosts, each with a port
        unreadable = "%00" in url or is_torn(parts) or not (several or (parts.port or 0) >= 0)
    except ValueError:
        unreadable = True
    if unreadable:
        raise ValueError(
            "cannot be read as a URL; in a password write / as %2F, ? as %3F, # as %23, @ as %40 "
            "and [ as %5B"
        )


def duration_us(text: str) -> int | None:
    """Return a time such as `30d` in microseconds; None for an empty text. Raises ValueError."""
    if not text.strip():
        return None
    if (found := _DURATION.fullmatch(text.strip())) is None:
        raise ValueError(f"{text!r} is not a number of h, d, w or y, such as 30d")
    return int(found[1]) * _HOURS[found[2]] * 3_600_000_000


def moment_us(text: str) -> int:
    """Return a moment, RFC 3339 with an offset, in Unix microseconds. Raises ValueError.

    It is in the years 1 to 9999, in UTC too: so it can be written again.
    """
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return (moment.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{text!r} is not RFC 3339 with an offset, such as 2000-01-01T00:00:00Z")


def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the networks of a text such as `10.0.0.0/8, ::1`. Raises ValueError."""
    found = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        try:
            found.append(ip_network(each))
        except ValueError as error:
            raise ValueError(f"{each!r} is not an address or network: {error}") from error
    return tuple(found)


def host_names(text: str) -> frozenset[str]:
    """Return the names in a text with commas, in small letters. Raises ValueError."""
    names = [each.strip().lower() for each in text.split(",") if each.strip()]
    for each in names:
        if not _HOST_NAME.fullmatch(each):
            raise ValueError(f"{each[:80]!r} is no host name (without scheme and port)")
    return frozenset(names)


def check_header_name(text: str) -> None:
    """Raise ValueError if this, unless it is empty, cannot be the name of a header."""
    if text and (not _HEADER_NAME.fullmatch(text) or text.lower() in _OTHER_HEADERS):
        raise ValueError(
            f"{text[:80]!r} is no name of a header that can be used here: it has letters, digits "
            "and `-`, and no other meaning, as Host or Authorization have"
        )


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


def check_name(name: str) -> None:
    """Check the name of a table or a column, as in PostgreSQL's catalog. Raises ValueError."""
    if not name:
        raise ValueError("is empty")
    if not name.isprintable():
        raise ValueError("has a character that cannot be printed")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8") from None
    if size > _NAME_BYTES_MAX:
        raise ValueError(f"has {size} bytes; PostgreSQL allows {_NAME_BYTES_MAX}")


def check_forward_name(name: str) -> None:
    """Raise ValueError if this cannot be a name: it is a part of a subject, and of a path."""
    if not _FORWARD_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name of 1 to 32 letters, digits, - and _")


def forward_names(text: str) -> tuple[str, ...]:
    """Return the names of a list with commas. Raises ValueError with a sentence for the user."""
    names = tuple(each.strip() for each in text.split(",") if each.strip())
    for each in names:
        check_forward_name(each)
    if len(set(names)) != len(names):
        raise ValueError(f"{text!r} has a name twice")
    return names
