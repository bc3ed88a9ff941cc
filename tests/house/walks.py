"""The walks: what a post calls in `ingest/`, from its first byte until its client has the answer.

`python -m tests.house.walks` prints a table: calls, functions, files and folders of each walk. With
`--calls` it prints each call, too. A walk is one post over a real socket, with a real journal, real
writers and a table in memory; the dead letters are fakes. Posts before it have warmed all caches.
The interpreter's profiler counts all calls of Python code in all threads, the journal's too. Each
go-on of a generator or coroutine counts as a call. Writers begin to store the reading while its
client reads the answer; a second count is without them, and ends when the answer is written.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import threading
from asyncio import selector_events
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from types import FrameType
from typing import NamedTuple, Self

import ingest
from tests.support.receiver import BAD, GOOD, OverFakes, post
from tests.support.whole_path import Promises, Whole

ROOT = str(Path(ingest.__file__).parent) + os.sep
WALKS = {
    "(a) one JSON reading, durable, until its 202": post(GOOD, "?ack=durable"),
    "(d) one valid and one invalid item, until its 202": post(b"[%b,%b]" % (GOOD, BAD)),
}
WARM_UP = 4
POSTS = 10  # that are counted; the least counts, since a timer may run beside one


class Call(NamedTuple):
    """One call: in which file of `ingest/`, and of which function.

    `leads`: the answer depends on it. It is before the answer is written, and in no writer.
    """

    file: PurePath
    function: str
    leads: bool


class Figures(NamedTuple):
    """What some calls come to."""

    calls: int
    functions: int
    files: int
    folders: int

    @classmethod
    def of(cls, calls: Sequence[Call]) -> Figures:
        """Count these calls."""
        files = {each.file for each in calls}
        folders = {each.parent for each in files}
        return cls(len(calls), len({each[:2] for each in calls}), len(files), len(folders))


class Profile:
    """Notes calls in `calls`, in all threads that begin inside of `with`, and in this one."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.is_written = False
        self.writers: Sequence[asyncio.Task[None]] = ()

    def __enter__(self) -> Self:
        threading.setprofile(self._note)
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def begin(self) -> None:
        """Begin a walk: forget the calls so far."""
        self.calls, self.is_written = [], False

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        if code.co_filename.startswith(ROOT):
            leads = not self.is_written and not self._is_in_writer
            path = PurePath(code.co_filename).relative_to(ROOT)
            self.calls.append(Call(path, code.co_qualname, leads))
        elif code.co_name == "write" and code.co_filename == selector_events.__file__:
            self.is_written = True

    @property
    def _is_in_writer(self) -> bool:
        loop = asyncio._get_running_loop()
        return loop is not None and asyncio.current_task(loop) in self.writers


async def _walk(request: bytes, profile: Profile, folder: Path) -> list[Call]:
    """Post several times on one connection; return the calls of the post that has the fewest."""
    whole = Whole(folder, Promises())
    await whole.open()
    profile.writers = whole.writers
    port = OverFakes(whole.buffer, whole.ledger, levels=whole.buffer.levels)
    host, _, number = (await port.endpoint.start("127.0.0.1", 0)).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(number))
    client = writer.get_extra_info("socket")._sock  # so that the client calls no `write`
    walks: list[list[Call]] = []
    for _ in range(WARM_UP + POSTS):
        profile.begin()
        client.send(request)
        await reader.readuntil(b"\r\n\r\n")
        walks.append([*profile.calls])
        await whole.until(lambda: not whole.rows)
        await whole.quiet()
    writer.close()
    await port.endpoint.close()
    await whole.halt()
    return min(walks[WARM_UP:], key=len)


def walk(request: bytes) -> list[Call]:
    """Return the calls of one post."""
    with (
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
        Profile() as profile,
    ):
        return runner.run(_walk(request, profile, Path(folder)))


def _lines() -> Iterator[str]:
    """Yield the table."""
    yield f"{'':60}" + "".join(f"{name:>10}" for name in Figures._fields)
    for name, request in WALKS.items():
        calls = walk(request)
        rows = {
            name: calls,
            "  without writers, until it is written": [each for each in calls if each.leads],
        }
        for title, some in rows.items():
            yield f"{title:60}" + "".join(f"{figure:10}" for figure in Figures.of(some))
        if "--calls" in sys.argv:
            for each in calls:
                yield f"    {'*' if each.leads else ' '} {each.file} {each.function}"


if __name__ == "__main__":
    print("\n".join(_lines()))  # noqa: T201
