"""Structured logs on standard error, and a limiter for lines that repeat.

For programs a line is JSON. For a person at a terminal it is a text, with colours. In a program of
others the lines are records of `logging`, below the logger `ingest`: that program decides.
Promises: an event is one line, because control characters and line separators are escaped; only the
traceback of a text is more. A broken standard error never breaks the service. Records of libraries
have the same form; each kind comes at most once per period.
Does not: write a line for every request.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections import OrderedDict
from collections.abc import MutableMapping
from datetime import datetime
from functools import partial
from typing import Any, BinaryIO

import orjson
import structlog

from ingest.system.clock import monotonic_s, rfc3339, unix_us

TEXT_CHARACTERS_MAX = 4_000
LIBRARY_PERIOD_S = 10.0
KEYS_MAX = 1_000

is_of_program = False  # in a program of others, where lines are records of `logging`
_COLOURS = {"warning": 33, "error": 31, "critical": 31}
_PLAIN = re.compile(r"[\w.:/+-]+", re.ASCII)  # a value that needs no quotes
# DEL, C1 controls, line and paragraph separators, marks that change the direction of the text. JSON
# allows them raw, but terminals and tools act on them.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def configure(
    level: str, file: BinaryIO | None = None, *, form: str = "auto", instance: str = ""
) -> None:
    """Send all logs of `level` and above to `file` (standard error by default).

    `form` is `json`, `text`, or `auto`: text on a terminal. Colours come only on a terminal. Each
    line names the `instance`, if several processes write to the same place.
    """
    file = file if file is not None else sys.stderr.buffer
    coloured = file.isatty() and not os.environ.get("NO_COLOR")
    is_text = form == "text" or (form == "auto" and file.isatty())
    least = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            partial(_stamp, instance=instance),
            partial(_render_text, coloured=coloured) if is_text else _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=_Lines(file),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [_FromLibrary()]
    root.setLevel(max(least, logging.WARNING))  # below that, libraries write lines that help nobody


def get_logger(part: str = "") -> Any:
    """Return the logger of a part of the service: `log.warning("what_happened", key=value)`."""
    return _Part(part)


class _Part:
    """The logger of one part. Where its lines go is decided at each of them."""

    def __init__(self, part: str) -> None:
        self._part = part

    def __getattr__(self, method: str) -> Any:
        if not is_of_program:
            return getattr(structlog.get_logger(self._part), method)
        log = getattr(logging.getLogger(f"ingest.{self._part}"), method)

        def record(event: str, *, exc_info: Any = None, **values: Any) -> None:
            shown = "".join(f" {_shown(key)}={_shown(value)}" for key, value in values.items())
            log("%s%s", event, shown, exc_info=exc_info)

        return record


def _stamp(
    logger: Any, method: str, event: MutableMapping[str, Any], *, instance: str
) -> dict[str, Any]:
    head = {"ts": rfc3339(unix_us()), "level": event.pop("level"), "event": event.pop("event")}
    who = {"instance": instance} if instance else {}
    return {**head, "part": logger.part, **who, **event}


def _render(logger: Any, method: str, event: MutableMapping[str, Any]) -> bytes:
    return _json({key: _cut(value) for key, value in event.items()}).encode()


def _json(value: Any) -> str:
    """Return JSON without line ends and without characters on which a terminal acts."""
    try:
        text = orjson.dumps(value, default=str).decode()
    except TypeError:  # half surrogate pairs from raw headers, huge integers, keys that are no text
        text = json.dumps(value, default=repr, skipkeys=True)
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _render_text(
    logger: Any, method: str, event: MutableMapping[str, Any], *, coloured: bool
) -> bytes:
    """Render `18:43:19 warning database_away  message="..."`, in local time."""
    at, level, name = (event.pop(key) for key in ("ts", "level", "event"))
    event.pop("part")
    traceback = str(_cut(event.pop("exception", ""))).splitlines()
    time_of_day = datetime.fromisoformat(at).astimezone().strftime("%H:%M:%S")
    # The event of a library is a sentence, and may have any text.
    head = f"{level:<8} {name if _PLAIN.fullmatch(name) else _json(name)[1:-1]}"
    if coloured and level in _COLOURS:
        head = f"\x1b[{_COLOURS[level]}m{head}\x1b[0m"
    values = "".join(f" {_shown(key)}={_shown(value)}" for key, value in event.items())
    text = f"{time_of_day} {head} {values}".rstrip()
    return "\n".join([text, *(f"    {_json(line)[1:-1]}" for line in traceback)]).encode()


def _shown(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return _json(_cut(value))


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > TEXT_CHARACTERS_MAX:
        half = TEXT_CHARACTERS_MAX // 2
        return f"{value[:half]} [..] {value[-half:]}"
    return value


class _Lines:
    """Writes whole lines for one part. If standard error is closed, the lines are lost."""

    def __init__(self, file: BinaryIO, part: str = "") -> None:
        self._file = file
        self.part = part

    def __call__(self, part: str = "") -> _Lines:
        return _Lines(self._file, part)

    def msg(self, line: bytes) -> None:
        """Write one line."""
        try:
            self._file.write(line + b"\n")
            self._file.flush()
        except (OSError, ValueError):
            pass  # there is no other place that could report it

    debug = info = warning = error = critical = msg


class _FromLibrary(logging.Handler):
    """Turns records of the standard library into our lines, each kind at most once per period."""

    def __init__(self) -> None:
        super().__init__()
        self._occasionally = Occasionally(LIBRARY_PERIOD_S)

    def emit(self, record: logging.LogRecord) -> None:
        left_out = self._occasionally.due((record.name, record.levelno, str(record.msg)[:200]))
        if left_out is None:
            return
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # the arguments do not fit the message
            text = str(record.msg)
        get_logger(record.name).log(
            record.levelno,
            text,
            exc_info=record.exc_info,
            similar_suppressed=left_out,
        )


class Occasionally:
    """Lets one line of a kind pass per `period_s` seconds, and counts the others."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._kinds: OrderedDict[object, tuple[float, int]] = OrderedDict()

    def due(self, kind: object) -> int | None:
        """Return None if no line is due, else how many of this kind were left out before."""
        now_s = monotonic_s()
        since_s, left_out = self._kinds.get(kind, (float("-inf"), 0))
        if now_s - since_s < self._period_s:
            self._kinds[kind] = (since_s, left_out + 1)
            return None
        self._kinds[kind] = (now_s, 0)
        self._kinds.move_to_end(kind)
        if len(self._kinds) > KEYS_MAX:
            self._kinds.popitem(last=False)
        return left_out
