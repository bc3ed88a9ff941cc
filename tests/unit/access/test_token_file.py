"""The file of tokens while the service runs: it grows, is replaced, breaks, goes, comes back."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import thread_time

import pytest

from ingest.access.token_file import CHANGING_LOOKS_MAX, TokenFile
from ingest.access.token_lines import append_lines, digest_of, new_secret
from ingest.model.errors import StartError
from ingest.system.clock import monotonic_s, unix_us
from tests.support.receiver import OTHER, SECRET, end, line, until


@asynccontextmanager
async def followed(path: Path, *, named: bool = True) -> AsyncIterator[TokenFile]:
    """Read a file, and look at it often."""
    file = TokenFile(path, named=named)
    file.open()
    stop = asyncio.Event()
    following = asyncio.create_task(file.follow(stop))
    try:
        yield file
    finally:
        stop.set()
        await following


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.access.token_file.LOOK_S", 0.005)


async def test_appended_lines_are_read(tmp_path: Path) -> None:
    """New tokens count, and ended ones do not; the others keep their identity."""
    path = tmp_path / "tokens"
    append_lines(path, line())
    async with followed(path) as file:
        first = file.tokens.find(SECRET)
        assert first
        append_lines(path, line(OTHER))
        await until(lambda: file.tokens.find(OTHER))
        assert file.tokens.find(SECRET) is first
        append_lines(path, end())
        await until(lambda: not first.live)
        assert file.tokens.find(OTHER)


async def test_file_that_is_being_written_revokes_nobody(tmp_path: Path) -> None:
    """An editor writes in parts: it is longer than before, and the last line is still missing."""
    path = tmp_path / "tokens"
    for before in (path.touch, path.unlink):
        path.write_bytes(line())
        file = TokenFile(path, named=True)
        file.open()
        identity = file.tokens.find(SECRET)
        before()
        for _ in range(3):
            await file._look_again()
        path.write_bytes(line(OTHER) + line(new_secret()))
        await file._look_again()
        assert file.tokens.find(SECRET) is identity
        with path.open("ab") as rest:
            rest.write(line())
        for _ in range(2):
            await file._look_again()
        assert file.tokens.find(SECRET) is identity
        assert file.tokens.find(OTHER)
        assert file.fault == ""


async def test_file_that_changes_all_the_time_is_read(tmp_path: Path) -> None:
    """Who appends at each look keeps nobody from posting."""
    path = tmp_path / "tokens"
    path.write_bytes(line())
    file = TokenFile(path, named=True)
    file.open()
    append_lines(path, line(OTHER))
    for _ in range(CHANGING_LOOKS_MAX):
        append_lines(path, line(new_secret()))
        await file._look_again()
    assert file.tokens.find(SECRET)
    assert file.tokens.find(OTHER)


async def test_file_that_is_written_slowly_revokes_nobody(tmp_path: Path) -> None:
    """It was emptied, and grows at each look for long: what is in it by then is a part."""
    path = tmp_path / "tokens"
    path.write_bytes(line())
    file = TokenFile(path, named=True)
    file.open()
    identity = file.tokens.find(SECRET)
    path.write_bytes(b"")
    for _ in range(2 * CHANGING_LOOKS_MAX):
        append_lines(path, line(new_secret()))
        await file._look_again()
        assert file.tokens.find(SECRET) is identity
    append_lines(path, line(OTHER))
    for _ in range(2):
        await file._look_again()
    assert file.tokens.find(SECRET) is None
    assert file.tokens.find(OTHER)


async def test_folder_in_its_place_leaves_no_descriptor_open(tmp_path: Path) -> None:
    """However often it changes."""
    file = TokenFile(tmp_path, named=True)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with pytest.raises(StartError, match="it is not a regular file"):
            file.open()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_replaced_file_revokes_what_is_not_in_it(tmp_path: Path) -> None:
    """Also one of the same size, or a larger one, or one that was written in place."""
    path = tmp_path / "tokens"
    path.write_bytes(line())
    async with followed(path) as file:
        new = tmp_path / "new"
        for text, gone, there in (
            (line(OTHER), SECRET, OTHER),
            (line() + line(new_secret()) + line(new_secret()), OTHER, SECRET),
            (line(OTHER), SECRET, OTHER),
        ):
            new.write_bytes(text)
            new.replace(path)
            await until(lambda: file.tokens.find(there))  # noqa: B023
            assert file.tokens.find(gone) is None
        path.write_bytes(line() + line(new_secret()))
        await until(lambda: file.tokens.find(SECRET))
        assert file.tokens.find(OTHER) is None


async def test_broken_or_missing_file_keeps_the_last_good_one(tmp_path: Path) -> None:
    """A broken line, a missing, unreadable or strange file: the tokens stay, the fault is told."""
    path = tmp_path / "tokens"
    path.write_bytes(line())
    async with followed(path) as file:
        first = file.tokens.find(SECRET)
        assert first
        path.write_bytes(line() + b"{broken\n")
        await until(lambda: "line 2" in file.fault)
        path.unlink()
        await until(lambda: "gone" in file.fault)
        os.mkfifo(path)
        await until(lambda: "regular" in file.fault)
        path.unlink()
        path.symlink_to(path)
        await until(lambda: "symbolic" in file.fault)
        assert file.tokens.find(SECRET) is first
        path.unlink()
        path.write_bytes(line() + line(OTHER))
        path.chmod(0o666)
        await until(lambda: "everybody may write" in file.fault)
        with pytest.raises(StartError, match="everybody may write"):
            TokenFile(path, named=False).open()
        assert file.tokens.find(OTHER) is None
        path.unlink()
        path.write_bytes(line() + line(OTHER))
        await until(lambda: file.tokens.find(OTHER))
        assert not file.fault
        assert first.live


@pytest.mark.parametrize("call", ["open", "stat"])
async def test_file_that_could_not_be_read_for_a_moment_is_read_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """No descriptor was free, or its rights were wrong: to mend that changes no time."""
    path = tmp_path / "tokens"
    append_lines(path, line() + line(OTHER))
    real = getattr(os, call)

    def fails(at: object, *more: object, **named: object) -> object:
        if at == path:
            raise OSError(24, "Too many open files")
        return real(at, *more, **named)

    async with followed(path) as file:
        ended = file.tokens.find(OTHER)
        assert ended
        with monkeypatch.context() as patched:
            patched.setattr(os, call, fails)
            path.write_bytes(line())
            await until(lambda: "Too many" in file.fault)
        await until(lambda: not ended.live)
        assert file.fault == ""


async def test_token_ends_in_time_while_it_runs(tmp_path: Path) -> None:
    """Nobody has to touch the file."""
    path = tmp_path / "tokens"
    path.write_bytes(line(ends_us=unix_us() + 30_000))
    async with followed(path) as file:
        await until(lambda: file.tokens.find(SECRET) is None)


async def test_file_of_the_state_folder_may_be_missing_and_be_made_later(tmp_path: Path) -> None:
    """A file that a setting names must be there."""
    path = tmp_path / "tokens"
    with pytest.raises(StartError, match="no such file"):
        TokenFile(path, named=True).open()
    async with followed(path, named=False) as file:
        assert not file.fault
        append_lines(path, line())
        await until(lambda: file.tokens.find(SECRET))


def test_broken_file_at_the_start_ends_it(tmp_path: Path) -> None:
    """With the line, and without what is in it."""
    path = tmp_path / "tokens"
    path.write_bytes(line() + SECRET.encode())
    with pytest.raises(StartError, match="line 2") as raised:
        TokenFile(path, named=False).open()
    assert SECRET not in str(raised.value)


async def test_many_tokens_do_not_hold_up_the_loop(tmp_path: Path) -> None:
    """10,000 tokens are read again in slices: no round of the event loop takes long."""
    path = tmp_path / "tokens"
    path.write_bytes(b"".join(line(f"{at}", name=f"n{at}") for at in range(10_000)))
    async with followed(path) as file:
        longest_s, begun_s = 0.0, monotonic_s()
        gc.freeze()  # of other tests: a full collection would count here
        new = tmp_path / "new"
        new.write_bytes(path.read_bytes() + line())
        new.replace(path)
        rounds = 0
        while not file.tokens.find(SECRET):
            assert monotonic_s() - begun_s < 10
            before_s = thread_time()  # other processes do not count
            await asyncio.sleep(0)
            longest_s, rounds = max(longest_s, thread_time() - before_s), rounds + 1
        assert file.tokens.entries.by_digest[digest_of("9999")].name == "n9999"
        assert rounds > 10, "it was done in one step"
        assert longest_s < 0.01


def test_lines_are_appended_whole_by_several(tmp_path: Path) -> None:
    """A file without a line end at its end gets one; a link is not followed."""
    path = tmp_path / "tokens"
    append_lines(path, line())
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes().rstrip())
    append_lines(path, line(OTHER))
    assert path.read_bytes() == line() + line(OTHER)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="symbolic"):
        append_lines(link, line())
