"""Sends a recorded request over a real socket, reads the answers, and lists their differences.

Promises: values that must vary (the date, times of receipt, the jitter of Retry-After, texts for
people) are checked for their form and replaced by a fixed mark; all others are compared unchanged.
Does not: import a module of the service. It uses HTTP only.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from itertools import zip_longest
from typing import Any, NamedTuple

Part = str | dict[str, Any]  # of a request: text, bytes, a repeated text, or a pause
ANSWER_S_MAX = 10.0
CLOCK_S_MAX = 300.0  # the service has the same clock
TEXTS = ("message", "title", "detail", "next")  # written for people: they may change
TIMES = ("received_at", "failed_at", "since", "cause_since", "started")
LATELY = ("full_in_s", "refused_60s", "closed_60s")  # by the last minutes: names with numbers
MARK_TEXT, MARK_TIME, MARK_SIZE = "<text>", "<time>", "<size>"
_TIME = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")
_ETAG = re.compile(r'"[0-9a-f]{24}"')
_PLACE = re.compile(r": /\S+, on the disk that is mounted at /\S*$")  # of this machine
_PROBE = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Case(NamedTuple):
    """One recorded request: its target, its situation, and the number of its answers.

    `at` is the situation of the service (see stage.py). `bodiless` are the answers to HEAD, by
    their place. Of an answer with `head_only` only status and headers are recorded.
    """

    name: str
    at: str
    port: str
    send: list[Part]
    answers: int = 1
    bodiless: tuple[int, ...] = ()
    head_only: bool = False

    @classmethod
    def of(cls, line: dict[str, Any]) -> Case:
        """Read a case from a line of the file."""
        known = {name: line[name] for name in cls._fields if name in line}
        return cls(**{**known, "bodiless": tuple(line.get("bodiless", ()))})

    def line(self, got: list[Any], then: str) -> dict[str, Any]:
        """Return the line of the file: the request, its answers, the end of the connection."""
        defaults = self._field_defaults
        asked = self._asdict().items()
        return {
            **{name: value for name, value in asked if defaults.get(name) != value},
            "got": got,
            "then": then,
        }


def expand(part: Part) -> bytes:
    """Return the bytes of a part; a pause has none."""
    if isinstance(part, str):
        return part.encode()
    if "base64" in part:
        return base64.b64decode(part["base64"])
    return str(part.get("text", "")).encode() * int(part.get("times", 0))


class _Wire:
    """A raw connection: sends bytes unchanged, also after the other side has closed."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        try:
            await self._loop.sock_sendall(self._sock, data)
        except ConnectionError:
            return  # the service has closed; its answer may have come all the same

    async def more(self) -> bool:
        try:
            data = await self._loop.sock_recv(self._sock, 1 << 16)
        except ConnectionError:
            data = b""
        self._buffer += data
        return bool(data)

    async def until(self, end: bytes) -> bytes:
        """Read up to and with `end`; less if the connection ends before."""
        while end not in self._buffer:
            if not await self.more():
                return self.take(len(self._buffer))
        return self.take(self._buffer.index(end) + len(end))

    async def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size and await self.more():
            pass
        return self.take(size)

    def take(self, size: int) -> bytes:
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    async def end(self, *, say: bool) -> str:
        """Read to the end; with `say` close our side first."""
        if say:
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                return "closed"
        while await self.more():
            pass
        return f"closed after {len(self._buffer)} further bytes" if self._buffer else "closed"


async def exchange(address: str, case: Case) -> tuple[list[Any], str]:
    """Send a request; return its answers in their recorded form, and the end of the connection.

    A late or broken answer is part of the result, and differs from all recordings.
    """
    host, _, port = address.rpartition(":")
    got: list[Any] = []
    with socket.socket() as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
                then = await _exchange(_Wire(sock), case, got)
        except TimeoutError:
            then = f"nothing more within {ANSWER_S_MAX:g} s"
    return got, then


async def _exchange(wire: _Wire, case: Case, got: list[Any]) -> str:
    together = b""  # in one write, so that the answer cannot depend on the size of pieces
    for part in case.send:
        data = expand(part)
        together += data
        if not data and isinstance(part, dict):
            await wire.send(together)
            together = b""
            await asyncio.sleep(part.get("pause_s", 0))
            while len(got) < part.get("answered", 0):
                got.append(await _answer(wire, case, len(got)))
    await wire.send(together)
    while len(got) < case.answers:
        got.append(await _answer(wire, case, len(got)))
    if not got:
        return await wire.end(say=False)
    headers = got[-1][1:-1]
    if "Content-Type: text/event-stream" in headers:
        return "a stream"
    if "Connection: close" in headers:
        return await wire.end(say=True)
    await wire.send(_PROBE)
    return "open" if (await wire.until(b"\r\n")) == b"HTTP/1.1 200 OK\r\n" else "closed"


async def _answer(wire: _Wire, case: Case, number: int) -> list[Any]:
    """Return one answer as [status line, header, .., body]."""
    head = await wire.until(b"\r\n\r\n")
    status_line, *headers = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    pairs = [(name, value) for name, _, value in (each.partition(": ") for each in headers)]
    values = dict(pairs)
    bodiless = number in case.bodiless or status_line.startswith("HTTP/1.1 1")
    size = 0 if bodiless else int(values.get("Content-Length", 0))
    raw = await wire.exactly(size)
    if len(raw) < size:
        return [status_line, *headers, f"only {len(raw)} bytes of its body"]
    kind = values.get("Content-Type", "")
    body: Any = None
    if not case.head_only and not bodiless:
        body = _document(raw) if "json" in kind else raw.decode("latin-1")
    varies = case.head_only or not _is_fixed(body, kind)
    shown = [f"{name}: {_shown(name, value, body, varies)}" for name, value in pairs]
    return [status_line, *shown, body]


def _document(raw: bytes) -> Any:
    if not raw:
        return ""
    try:
        return _marked(json.loads(raw))
    except ValueError:
        return "no JSON: " + raw.decode("latin-1")


def _marked(value: Any, key: str = "") -> Any:
    """Replace the varying values of a JSON document, if they have the right form."""
    if key in LATELY and isinstance(value, dict):
        numbers = all(each is None or isinstance(each, int) for each in value.values())
        return MARK_TEXT if numbers else value
    if isinstance(value, dict):
        return {name: _marked(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_marked(each) for each in value]
    if isinstance(value, str) and key in TEXTS and value.strip():
        return MARK_TEXT
    if isinstance(value, str) and key in TIMES and _TIME.fullmatch(value):
        return MARK_TIME
    return _PLACE.sub(": <place>", value) if isinstance(value, str) and key == "reason" else value


def _is_fixed(body: Any, kind: str) -> bool:
    """Whether the size of a body can be compared: it has no varying value."""
    text = json.dumps(body)
    marks = any(mark in text for mark in (MARK_TEXT, MARK_TIME))
    return not marks and (body is not None or "json" not in kind)


def _shown(name: str, value: str, body: Any, varies: bool) -> str:
    """Return a header's value as it is recorded."""
    if name == "Content-Length" and varies and value.isdecimal():
        return MARK_SIZE  # it is right, since the body was read by it
    if name == "Date" and _is_now(value):
        return "<now>"
    if name == "ETag" and _ETAG.fullmatch(value):
        return "<tag>"
    if name == "Retry-After":
        most = 60 if isinstance(body, dict) and body.get("code") == "disk_low" else 30
        return f"<1..{most}>" if value.isdecimal() and 1 <= int(value) <= most else value
    return value


def _is_now(value: str) -> bool:
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return False
    wanted = time.strftime("%a, %d %b %Y %H:%M:%S GMT", moment.utctimetuple())
    return value == wanted and abs(moment.timestamp() - time.time()) < CLOCK_S_MAX


# Differences


def differences(line: dict[str, Any], got: list[Any], then: str) -> list[str]:
    """Return a sentence for each difference between the recorded result and the new one."""
    told = list(_answers_differ(line["got"], got))
    if line["then"] != then:
        told.append(f"the connection: recorded {line['then']!r}, now {then!r}")
    return [f"{line['name']} ({line['at']}, {line['port']} port): {each}" for each in told]


def _answers_differ(recorded: list[Any], now: list[Any]) -> Iterator[str]:
    if len(recorded) != len(now):
        yield f"{len(recorded)} answers were recorded, {len(now)} came"
    for number, (old, new) in enumerate(zip(recorded, now, strict=False), 1):
        which = f"answer {number}: " if len(recorded) > 1 else ""
        # Version and code. The words after them are Python's, which changed some in 3.13.
        if old[0].split(" ")[:2] != new[0].split(" ")[:2]:
            yield f"{which}status: recorded {old[0]!r}, now {new[0]!r}"
        old_headers, new_headers = old[1:-1], new[1:-1]
        for header in (each for each in old_headers if each not in new_headers):
            yield f"{which}header {header!r} is not there any more"
        for header in (each for each in new_headers if each not in old_headers):
            yield f"{which}header {header!r} is new"
        if old_headers != new_headers and sorted(old_headers) == sorted(new_headers):
            yield f"{which}the headers have another order: {new_headers}"
        for each in documents_differ(old[-1], new[-1]):
            yield f"{which}body{each}"


def documents_differ(old: Any, new: Any, place: str = "") -> Iterator[str]:
    """Yield the places where two JSON documents differ, also in the order of names."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            if name not in new:
                yield f"{place}.{name}: is not there any more"
            elif name not in old:
                yield f"{place}.{name}: is new ({new[name]!r:.80})"
            else:
                yield from documents_differ(old[name], new[name], f"{place}.{name}")
        if list(old) != list(new) and set(old) == set(new):
            yield f"{place}: the names have another order: {list(new)}"
    elif isinstance(old, list) and isinstance(new, list):
        gone = object()
        for index, (before, after) in enumerate(zip_longest(old, new, fillvalue=gone)):
            if before is gone or after is gone:
                yield f"{place}: {len(old)} entries were recorded, there are {len(new)}"
                return
            yield from documents_differ(before, after, f"{place}[{index}]")
    elif type(old) is not type(new) or old != new:
        yield f"{place}: recorded {old!r:.120}, now {new!r:.120}"
