"""A child of `ingest up`: its channel, its account, and what is left of it after a kill."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest.model.errors import StartError
from ingest.roles.supervisor import child
from ingest.roles.supervisor import child as control
from ingest.roles.supervisor.child import Child, ControlChannel
from ingest.system.files import Lock
from tests.support.documents import REPOSITORY

SAYS = """
import os, sys
fd = int(sys.argv[sys.argv.index("--control-fd") + 1])
os.write(fd, b'{"status":{},"ready":true}\\n')
"""


async def test_child_whose_status_cannot_be_taken_still_ends() -> None:
    """Else its slot would wait for it for ever."""
    ended: list[Child] = []

    def fail(_: Mapping[str, Any]) -> None:
        raise ZeroDivisionError

    with capture_logs() as logs:
        child = await Child.start(
            [], [], fail, lambda: None, ended.append, program=(sys.executable, "-c", SAYS)
        )
        async with asyncio.timeout(10):
            await child.ended.wait()
    assert ended == [child]
    assert [(each["event"], each["why"]) for each in logs] == [
        ("control_broken", "ZeroDivisionError()")
    ]


@asynccontextmanager
async def both_ends() -> AsyncIterator[tuple[ControlChannel, ControlChannel]]:
    """Give the two ends of a channel."""
    ours, theirs = [await ControlChannel.open(each) for each in socket.socketpair()]
    try:
        yield ours, theirs
    finally:
        await ours.close()
        await theirs.close()


async def test_messages_come_whole_and_in_order() -> None:
    """Small and large ones, in both directions."""
    async with both_ends() as (ours, theirs):
        large = {"text": "ü\n" * 500_000}
        for message in ({"do": "drain"}, large, {"n": 1}):
            assert ours.send(message)
        assert theirs.send({"ready": True})
        assert [await theirs.receive() for _ in range(3)] == [{"do": "drain"}, large, {"n": 1}]
        assert await ours.receive() == {"ready": True}


async def test_end_that_is_gone_is_seen_by_both_sides() -> None:
    """`receive` returns None, after what came before; `send` says that nothing was sent."""
    async with both_ends() as (ours, theirs):
        assert ours.send({"last": 1})
        await ours.close()
        await ours.close()
        assert not ours.send({"n": 1})
        assert await theirs.receive() == {"last": 1}
        assert await theirs.receive() is None
        assert await theirs.receive() is None
        await asyncio.sleep(0)
        theirs.send({"n": 1})
        await asyncio.sleep(0.01)
        assert not theirs.send({"n": 2})


@pytest.mark.parametrize("line", [b"no JSON\n", b"[1]\n", b'{"cut":', b"x" * 300_000])
async def test_other_end_that_is_none_of_ours_counts_as_gone(
    line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no JSON object, is cut off, or is endless, ends the channel without an error."""
    monkeypatch.setattr(control, "LINE_BYTES_MAX", 100_000)
    ours, theirs = socket.socketpair()
    channel = await ControlChannel.open(ours)
    theirs.setblocking(False)
    sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(theirs, line))
    if line[-1:] != b"\n" and len(line) < 100:
        await sending
        theirs.close()
    with capture_logs() as logs:
        assert await channel.receive() is None
    cut = line == b'{"cut":'
    assert [each["event"] for each in logs] == ([] if cut else ["control_broken"])
    await channel.close()
    sending.cancel()
    await asyncio.wait([sending])
    theirs.close()


async def test_end_that_does_not_read_costs_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Messages to a frozen process are dropped beyond a bound, and `send` says so."""
    monkeypatch.setattr(control, "WAITING_BYTES_MAX", 1_000_000)
    async with both_ends() as (ours, theirs):
        message = {"text": "x" * 50_000}
        sent = [ours.send(message) for _ in range(100)]
        assert sent[0]
        assert not sent[-1]
        count = sent.index(False)
        assert count < 60
        for _ in range(count):
            assert await theirs.receive() == message
        assert ours.send({"n": 1})
        assert await theirs.receive() == {"n": 1}
        with pytest.raises(ValueError, match="a message of"):
            ours.send({"text": "x" * control.LINE_BYTES_MAX})


async def test_error_of_a_child_is_told() -> None:
    """The supervisor gets the sentence; an error that users may not read it does not get."""
    for error, said in ((StartError("no port"), {"failed": "no port"}), (KeyError("x"), None)):
        ours, theirs = socket.socketpair()
        channel = await ControlChannel.open(ours)
        child = await ControlChannel.open(theirs)
        with pytest.raises(type(error)):
            async with child:
                raise error
        assert await channel.receive() == said
        await channel.close()


CHILD = """
import asyncio, os, subprocess, sys
from ingest.roles.supervisor.child import ControlChannel
async def main():
    async with await ControlChannel.inherited(int(sys.argv[1])) as channel:
        first = await channel.receive()
        look = ["-c", f"import os; os.fstat({sys.argv[1]})"]
        gone = subprocess.run([sys.executable, *look], close_fds=False, capture_output=True)
        channel.send({"got": first, "grandchild": gone.returncode})
        assert await channel.receive() is None
asyncio.run(main())
"""


async def test_channel_reaches_a_child_and_nobody_else() -> None:
    """A child gets its end, and neither its own children nor others get it."""
    ours, theirs = socket.socketpair()
    assert not ours.get_inheritable()
    assert not theirs.get_inheritable()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, str(theirs.fileno())),
        pass_fds=(theirs.fileno(),),
        cwd=REPOSITORY,
        stderr=subprocess.DEVNULL,
    )
    theirs.close()
    channel = await ControlChannel.open(ours)
    channel.send({"password": "secret"})
    assert await channel.receive() == {"got": {"password": "secret"}, "grandchild": 1}
    await channel.close()
    assert await child.wait() == 0


async def test_process_that_has_ended_since_it_was_found_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are killed all the same; here somebody else has the file."""
    gone = subprocess.Popen(["true"])  # noqa: ASYNC220
    gone.wait()
    path = tmp_path / "children.lock"
    lock = Lock.try_take(path, create=True)
    assert lock is not None
    monkeypatch.setattr(child, "PATIENCE_S", -1.0)
    monkeypatch.setattr(child, "KILL_S_MAX", 1.0)
    monkeypatch.setattr(child, "holders", lambda _: [gone.pid])
    with lock, pytest.raises(StartError, match=f"do not end \\(pid {gone.pid}\\)"):
        await child.family_lock(path)
    monkeypatch.undo()
    (await child.family_lock(path)).close()
