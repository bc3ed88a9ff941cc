"""Logs: an event is one JSON line, whatever its values are, and repeated events make few lines."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import structlog

from ingest.system import logs
from ingest.system.logs import Occasionally


@pytest.fixture
def stream() -> Iterator[io.BytesIO]:
    """Send the log to memory as JSON; afterwards restore the settings of the process."""
    with text_log(io.BytesIO(), form="auto") as stream:
        yield stream


@contextmanager
def text_log(stream: io.BytesIO, form: str = "text", instance: str = "") -> Iterator[io.BytesIO]:
    """Send the log to `stream` in this form."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    logs.configure("info", stream, form=form, instance=instance)
    try:
        yield stream
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()


def lines(stream: io.BytesIO) -> list[dict[str, Any]]:
    """Return what was logged, decoded."""
    text = stream.getvalue().decode()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def test_line_of_one_of_several_processes_names_it() -> None:
    """A field of the event with that name wins: it says which process is meant."""
    stream = io.BytesIO()
    with text_log(stream, form="json", instance="gateway-2"):
        logs.get_logger("door").info("went")
        logs.get_logger("door").info("came", instance="writer-1")
        assert [each["instance"] for each in lines(stream)] == ["gateway-2", "writer-1"]


def test_log_event_is_one_json_line(stream: io.BytesIO) -> None:
    """A line has the time, the level, the event, the part and the values."""
    logs.get_logger("door").warning("something_happened", count=3)
    (line,) = lines(stream)
    assert line.pop("ts").endswith("Z")
    assert line == {"level": "warning", "event": "something_happened", "part": "door", "count": 3}


@pytest.mark.parametrize(
    "text",
    [
        'a\n{"level":"critical","event":"forged"}\n',
        "a\r\nb\x00c\x1b[31mred",
        "line\u2028separator\u2029and\x85next",
        "csi\x9b31m and \x7f",
        "right\u202eleft",
        "half \ud800 pair",
        "x" * 100_000,
    ],
)
def test_log_hostile_text_stays_one_harmless_line(stream: io.BytesIO, text: str) -> None:
    """No text starts a second line, sends control characters to a terminal, or breaks the log."""
    logs.get_logger().error("refused", value=text, **{"odd key": text[:5]})
    written = stream.getvalue()
    assert written.count(b"\n") == 1
    assert len(written) < 30_000
    assert not any(ord(each) < 32 or 127 <= ord(each) < 160 for each in written.decode()[:-1])
    assert not set("\u2028\u2029\u202e") & set(written.decode())
    (line,) = lines(stream)
    assert line["event"] == "refused"


@pytest.mark.parametrize("value", [2**80, {1: "odd"}, object, b"bytes", {"set"}, float("nan")])
def test_log_odd_value_still_gives_a_line(stream: io.BytesIO, value: Any) -> None:
    """A line is written for values of every kind."""
    logs.get_logger().info("odd", value=value)
    assert lines(stream)[0]["event"] == "odd"


def test_log_as_text_is_short_and_harmless() -> None:
    """For a person: time of day, level, event, values. No colours unless it is a terminal."""
    with text_log(io.BytesIO()) as stream:
        logs.get_logger("x").warning("database_away", sqlstate=None, message="a b\x1b[31m\nred")
        logs.get_logger("x").info("state", state="accepting", was="starting")
    first, second = stream.getvalue().decode().splitlines()
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d warning  database_away  sqlstate=null message="a b\\u001b\[31m\\nred"',
        first,
    )
    assert second[9:] == "info     state  state=accepting was=starting"


def test_log_as_text_shows_a_traceback_on_lines_of_its_own() -> None:
    """A person reads the traceback as Python prints it; no line of it acts on the terminal."""
    with text_log(io.BytesIO()) as stream:
        try:
            raise RuntimeError("first\n\x1b[2Jsecond")
        except RuntimeError:
            logs.get_logger().error("request_failed", exc_info=True)
    head, *rest = stream.getvalue().decode().splitlines()
    assert head.endswith("error    request_failed")
    assert all(line.startswith("    ") for line in rest)
    assert "RuntimeError: first" in rest[-2]
    assert rest[-1] == "    \\u001b[2Jsecond"


def test_log_broken_stderr_does_not_raise(stream: io.BytesIO) -> None:
    """If the reader of the log has gone, logging does not fail."""
    logger = logs.get_logger()
    stream.close()
    logger.error("nobody_listens")


def test_library_lines_come_in_our_form_and_rarely(stream: io.BytesIO) -> None:
    """A thousand equal records of a library are one line."""
    for number in range(1000):
        logging.getLogger("asyncio").warning("socket.accept() failed: %s", f"n\n{number}")
    logging.getLogger("aiohttp.server").error("another kind")
    first, second = lines(stream)
    assert first["event"] == "socket.accept() failed: n\n0"
    assert first["part"] == "asyncio"
    assert second["part"] == "aiohttp.server"


def test_occasionally_lets_one_through_per_period(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next line that passes has the number of lines that were left out."""
    now_s = 100.0
    monkeypatch.setattr("ingest.system.logs.monotonic_s", lambda: now_s)
    occasionally = Occasionally(10.0)
    assert occasionally.due("a") == 0
    assert occasionally.due("a") is None
    assert occasionally.due("a") is None
    assert occasionally.due("b") == 0
    now_s = 110.0
    assert occasionally.due("a") == 2
    assert occasionally.due("a") is None
