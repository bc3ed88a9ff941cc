"""One post as it goes over the connection: a whole HTTP/1.1 request, ready before it is due.

Pure. Promises: the same arguments give the same bytes (a retry sends them unchanged).
Does not: read a body, or an answer.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple
from urllib.parse import urlsplit

from loadgen.traffic.encode import FORMATS, READINGS_PATH

_GZIP_WINDOW_BITS = 31  # in zlib: a gzip header and trailer, the largest window


class Post(NamedTuple):
    """A post and the sender's facts about it.

    `request` is the complete request, head and body; `readings` the number of its readings; `kind`
    any word of the source for the observer (such as `good`); `number` counts the posts of one
    source.
    """

    request: bytes
    readings: int
    kind: str
    number: int


class Target(NamedTuple):
    """The target of posts: `host` and `port` to connect to, `authority` for the Host header.

    `path` is `/v1/readings` or whatever longer path the URL had, without a query. With `tls` the
    server's certificate is checked with `ca_file`; without that, with those of the system. `token`
    is sent with each post, unless it is empty.
    """

    host: str
    port: int
    authority: str
    path: str
    tls: bool = False
    ca_file: str = ""
    token: str = ""

    @property
    def url(self) -> str:
        """The whole URL."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.path}"


def target_of(url: str) -> Target:
    """Return the target of a URL (`http://127.0.0.1:8080`, with or without `/v1/readings`).

    Raises ValueError with a sentence that says what is wrong.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:  # a port that is no number, an unclosed bracket
        raise ValueError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{url!r} does not begin with http:// or https://")
    if not parts.hostname or port == 0:
        raise ValueError(f"{url!r} names no host and port")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{url!r}: a user, a query or a fragment has no place here")
    if not url.isascii() or any(each.isspace() or not each.isprintable() for each in url):
        raise ValueError(f"{url!r} holds characters that no URL may hold")
    path = parts.path.rstrip("/")
    if not path.endswith(READINGS_PATH):
        path += READINGS_PATH
    tls = parts.scheme == "https"
    return Target(parts.hostname, port or (443 if tls else 80), parts.netloc, path, tls)


def path_for(target: Target, name: str) -> str:
    """Return where posts of a format go at a target."""
    return target.path.removesuffix(READINGS_PATH) + FORMATS[name].path


def head_of(
    path_and_query: str,
    host: str,
    *,
    gzip: bool = False,
    token: str = "",
    closes: bool = False,
    media_type: str = FORMATS["json"].media_type,
) -> bytes:
    """Return the part of a request's head that does not depend on its body.

    `finish(head, body)` is the whole request. `gzip`: for a body of `compress`. `closes`: its
    connection ends with the answer.
    """
    bearer = f"Authorization: Bearer {token}\r\n" if token else ""
    connection = "Connection: close\r\n" if closes else ""
    encoding = "Content-Encoding: gzip\r\n" if gzip else ""
    return (
        f"POST {path_and_query} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: iot-ingest-loadgen\r\n"
        f"{connection}{bearer}Content-Type: {media_type}\r\n{encoding}Content-Length: "
    ).encode("ascii")


def finish(head: bytes, body: bytes) -> bytes:
    """Return the whole request of a head of `head_of` and a body."""
    return b"%b%d\r\n\r\n%b" % (head, len(body), body)


def compress(body: bytes, level: int = 1) -> bytes:
    """Return the body as gzip, without a time in it. Level 1: a device has a slow processor."""
    packer = zlib.compressobj(level, zlib.DEFLATED, _GZIP_WINDOW_BITS)
    return packer.compress(body) + packer.flush()
