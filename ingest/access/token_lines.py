"""The lines of a file of tokens: what each says, how they are read, and how commands append some.

A line is a JSON object of one of two kinds. The first is an entry: its name, what proves it, and
what it may do. The proof is the digest of a token, or the name in a certificate that a trusted
proxy has checked. The second kind names a digest or a certificate, and from when on it is refused.
Empty lines and lines that begin with # are skipped. A later line of the same digest counts.
Does not: know any token, which cannot be found from its digest.
"""

from __future__ import annotations

import math
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from ingest.config.values import moment_us
from ingest.model.errors import ConfigError
from ingest.system.clock import rfc3339
from ingest.system.files import AppendFile, other_writers, sync_folder

NEVER_US = math.inf
PREFIX = "iot_"  # so that a scanner finds a token that was published by mistake
TOKEN_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
LINE_BYTES_MAX = 16 * 1024
TEXT_CHARACTERS_MAX = 500
CERTIFICATE = "certificate:"  # in the place of a digest, before the name; no digest begins so
LIMITS = ("readings_per_s_max", "posts_per_s_max", "connections_max")
LIMIT_MAX = 1e9
READS, OPERATES = "read", "operate"  # what a token may do at the admin port
_DIGEST = re.compile(r"[0-9a-f]{64}")
# No character with which a subject separates its parts: see receiver/access.
_CERTIFICATE_NAME = re.compile(r"[A-Za-z0-9*](?:[A-Za-z0-9 ._:@*-]{0,254}[A-Za-z0-9._:@*-])?")
_LISTS = ("devices", "sources", "formats")
_TEXTS = ("device", "note", "admin")
_PROOFS = ("sha256", "certificate")  # one of them
_TOKEN = frozenset({"name", *_PROOFS, *_LISTS, *_TEXTS, *LIMITS, "expires"})
_END = frozenset({"end", "at", "name"})


class TokenEntry(NamedTuple):
    """A token as the file has it. An empty tuple: no limit. Its end is in Unix microseconds.

    `digest` is its SHA-256 in hexadecimal digits, or CERTIFICATE and the name in a certificate.
    `devices` are globs; `device` is the one device that it speaks for, also where a post names
    none. `ends_us` is from when on it is refused, NEVER_US if there is no such time. With `admin`
    (READS or OPERATES) it is for the admin port, and posts nothing. LIMITS are what it may send:
    None: what the settings say; 0: no limit.
    """

    name: str
    digest: str
    devices: tuple[str, ...] = ()
    device: str = ""
    sources: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    ends_us: float = NEVER_US
    note: str = ""
    admin: str = ""
    readings_per_s_max: float | None = None
    posts_per_s_max: float | None = None
    connections_max: int | None = None

    @property
    def certificate(self) -> str:
        """The name in the certificate; "" if this is a token."""
        return self.digest[len(CERTIFICATE) :] if self.digest.startswith(CERTIFICATE) else ""


class Entries:
    """The tokens that some lines name, by digest. `read` may be called again with later lines."""

    def __init__(self) -> None:
        self.by_digest: dict[str, TokenEntry] = {}
        self._ends: dict[str, int] = {}
        self._lines = 0

    @property
    def senders(self) -> int:
        """How many tokens there are that may post, those that have ended included."""
        return sum(not each.admin for each in self.by_digest.values())

    def read(self, text: bytes) -> Iterator[None]:
        """Read whole lines in short steps. Raises ValueError, which shows nothing of a line."""
        start = 0
        while start < len(text):
            end = text.find(b"\n", start)
            end = len(text) if end < 0 else end
            self._lines += 1
            self._read(text[start:end].strip())
            start = end + 1
            yield

    def _read(self, line: bytes) -> None:
        if not line or line.startswith(b"#"):
            return
        try:
            self._take(_fields_of(line))
        except ValueError as error:
            raise ValueError(f"line {self._lines}: {error}") from None

    def _take(self, fields: dict[str, Any]) -> None:
        if "end" in fields:
            digest, at_us = _end_of(fields)
            self._ends[digest] = min(self._ends.get(digest, at_us), at_us)
            entry = self.by_digest.get(digest)
            if entry is None:
                return
        else:
            entry = _entry_of(fields)
        ends_us = min(entry.ends_us, self._ends.get(entry.digest, NEVER_US))
        self.by_digest[entry.digest] = entry._replace(ends_us=ends_us)


def read_entries(path: Path) -> Entries:
    """Return the tokens of a file, none if it is missing.

    Raises ConfigError for a wrong line, or if others may write to it: no service reads it then.
    """
    entries = Entries()
    try:
        if others := other_writers(path, path.stat()):
            raise ValueError(f"{others}; look at its lines first")
        for _ in entries.read(path.read_bytes()):
            pass
    except FileNotFoundError:
        pass
    except ValueError as error:
        raise ConfigError(f"the file of tokens {path} cannot be used: {error}") from error
    return entries


def append_lines(path: Path, lines: bytes) -> None:
    """Append whole lines; return when they are on the disk. Raises OSError, nothing is appended.

    Several commands may do so at the same time. A new file is readable for the owner of its folder
    only.
    """
    while True:
        is_new = not path.exists()
        with closing(AppendFile.open(path, create=False)) as file:
            if not file.lock():  # another command has just appended
                continue
            if is_new and os.geteuid() == 0:  # the service may run as another user
                owner = path.parent.stat()
                # Its owner may have put a link in the place of the file meanwhile.
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
            ends_line = path.read_bytes()[-1:] in (b"", b"\n")
            file.append(lines if ends_line else b"\n" + lines)
            sync_folder(path.parent)
            return


def new_secret() -> str:
    """Return a new token."""
    return PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def digest_of(token: str) -> str:
    """Return the digest of a token, of any text that a client sent."""
    return sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def entry_line(entry: TokenEntry) -> bytes:
    """Return the line of a token."""
    fields: dict[str, Any] = {"name": entry.name}
    fields |= {"certificate": entry.certificate} if entry.certificate else {"sha256": entry.digest}
    scope = {name: getattr(entry, name) for name in (*_LISTS, *_TEXTS)}
    fields |= {name: each for name, each in scope.items() if each}
    limits = {name: getattr(entry, name) for name in LIMITS}
    fields |= {name: each for name, each in limits.items() if each is not None}
    if entry.ends_us != NEVER_US:
        fields["expires"] = rfc3339(int(entry.ends_us))
    return orjson.dumps(fields) + b"\n"


def end_line(entry: TokenEntry, at_us: int) -> bytes:
    """Return the line that ends a token at this time."""
    return orjson.dumps({"end": entry.digest, "at": rfc3339(at_us), "name": entry.name}) + b"\n"


def _fields_of(line: bytes) -> dict[str, Any]:
    if len(line) > LINE_BYTES_MAX:
        raise ValueError(f"is longer than {LINE_BYTES_MAX} bytes")
    try:
        fields = orjson.loads(line)
    except ValueError:  # its text would show the line
        raise ValueError("is not JSON; is it cut off?") from None
    if type(fields) is not dict:
        raise ValueError("is not a JSON object")
    known = _END if "end" in fields else _TOKEN
    if not known.issuperset(fields):  # it may be a limit of a later version
        raise ValueError(f"has a field that is not known; known are {', '.join(sorted(known))}")
    return fields


def _entry_of(fields: dict[str, Any]) -> TokenEntry:
    if "name" not in fields:
        raise ValueError("has no `name`")
    check_name(fields["name"])
    digest = _proof(fields)
    lists = {name: _texts(fields, name) for name in _LISTS if name in fields}
    single = {name: _text(fields[name], name) for name in _TEXTS if name in fields}
    limits = {name: _limit(fields[name], name) for name in LIMITS if name in fields}
    if lists.get("devices") and single.get("device"):
        raise ValueError("has `devices` and `device`; it may have one of them")
    if "admin" in single:
        if single["admin"] not in {READS, OPERATES}:
            raise ValueError(f"`admin` is neither {READS} nor {OPERATES}")
        if lists or limits or "device" in single:
            raise ValueError("has `admin`; such a token posts nothing, so it has no other limits")
        if "certificate" in fields:
            raise ValueError("has `admin` and `certificate`; the admin port reads no certificate")
    ends_us = _moment_us(fields["expires"], "expires") if "expires" in fields else NEVER_US
    scope: dict[str, Any] = {**lists, **single, **limits}
    return TokenEntry(fields["name"], digest, ends_us=ends_us, **scope)


def _end_of(fields: dict[str, Any]) -> tuple[str, int]:
    at_us = _moment_us(fields["at"], "at") if "at" in fields else 0
    ended = fields["end"]
    if isinstance(ended, str) and ended.startswith(CERTIFICATE):
        return certificate_key(ended[len(CERTIFICATE) :]), at_us
    return _digest(ended, "end"), at_us


def _proof(fields: dict[str, Any]) -> str:
    given = [name for name in _PROOFS if name in fields]
    if len(given) != 1:
        raise ValueError("must have either `sha256` or `certificate`")
    if given == ["certificate"]:
        return certificate_key(fields["certificate"])
    return _digest(fields["sha256"], "sha256")


def certificate_key(name: Any) -> str:
    """Return what stands in the place of a digest. Raises ValueError if it cannot be a name."""
    if not (isinstance(name, str) and _CERTIFICATE_NAME.fullmatch(name)):
        raise ValueError(
            "`certificate` is not the name in a certificate (its CN): 1 to 256 letters, digits, "
            "spaces, and . - _ : @ *"
        )
    return CERTIFICATE + name


def check_name(name: Any) -> None:
    """Raise ValueError unless this can be the name of a token: it is shown in many places."""
    if not (isinstance(name, str) and NAME.fullmatch(name)):
        raise ValueError(
            "the name of a token has 1 to 64 letters, digits, dots, dashes or underscores, and "
            "begins with a letter or a digit"
        )


def _moment_us(value: Any, field: str) -> int:
    try:
        return moment_us(value)
    except (TypeError, ValueError):
        raise ValueError(f"`{field}` is not a time such as 2027-01-01T00:00:00Z") from None


def _digest(value: Any, field: str) -> str:
    if not (isinstance(value, str) and _DIGEST.fullmatch(value)):
        raise ValueError(f"`{field}` is not a digest of 64 hexadecimal digits")
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value or len(value) > TEXT_CHARACTERS_MAX:
        raise ValueError(f"`{field}` is not a text of 1 to {TEXT_CHARACTERS_MAX} characters")
    return value


def _limit(value: Any, field: str) -> Any:
    kinds = (int,) if field == "connections_max" else (int, float)
    if type(value) not in kinds or not 0 <= value <= LIMIT_MAX:
        kind = "a whole number" if len(kinds) == 1 else "a number"
        raise ValueError(f"`{field}` is not {kind} from 0 (no limit) to {LIMIT_MAX:g}")
    return value


def _texts(fields: dict[str, Any], field: str) -> tuple[str, ...]:
    value = fields[field]
    if type(value) is not list or not value:
        raise ValueError(f"`{field}` is not a list of texts; without it there is no limit")
    return tuple(_text(each, field) for each in value)
