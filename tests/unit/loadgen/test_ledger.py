"""The ledger of `loadgen verify`: written before the send, readable after a kill at any moment."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sys
from pathlib import Path

import pytest

from loadgen.proof.ledger import (
    RESERVED_POSTS,
    Details,
    Final,
    Ledger,
    LedgerError,
    LedgerWriter,
)

ENOUGH = RESERVED_POSTS + 3
LONG_CODE = "a_code_of_more_than_eight_bytes"
FINALS = {
    0: (Final(202, "buffered"), None),
    1: (Final(200, "committed", doubt=True), None),
    2: (Final(202, "durable"), Details(97, 3, True, {0: "wrong_type", 99: LONG_CODE})),
    3: (Final(422), Details(0, 0, False, {0xFFFF: "all_invalid"})),
    4: (Final(0, doubt=True), None),
    5: (Final(0), None),
    6: (Final(200, odd=True), None),
    7: (Final(202, "buffered"), Details(1, 1, False, {1: LONG_CODE})),
}


async def _write(path: Path, *, end: bool = True) -> None:
    writer = LedgerWriter(path, {"plan": {"run": "00ff"}})
    for post in range(ENOUGH):
        writer.take(post)
    for post, (final, details) in FINALS.items():
        writer.tried(post, 503, 5)
        await asyncio.sleep(0)
        writer.final(post, final, 1_000 + post, details)
    await asyncio.sleep(0)
    if end:
        writer.end(ENOUGH)
    writer.close()


def _check(ledger: Ledger, posts: range) -> None:
    for post in posts:
        final, details = FINALS[post]
        expected = final._replace(details=details is not None)
        assert ledger.final(post) == expected
        if details is not None:
            assert ledger.details(post) == details


async def test_ledger_gives_back_what_was_written(tmp_path: Path) -> None:
    """Every kind of answer, codes of any length, and the end are read as they were written."""
    path = tmp_path / "ledger"
    await _write(path)
    ledger = Ledger.read(path)
    _check(ledger, range(len(FINALS)))
    assert ledger.header == {"plan": {"run": "00ff"}}
    assert (ledger.posts, ledger.ended, ledger.torn_bytes) == (ENOUGH, True, 0)
    assert ledger.tries == {503: len(FINALS)}
    assert ledger.final(ENOUGH - 1) is None, "sent, and not known"
    assert path.stat().st_mode & 0o777 == 0o600


async def test_ledger_cut_anywhere_gives_what_came_before(tmp_path: Path) -> None:
    """A ledger that is cut anywhere gives all records before the cut."""
    path, cut = tmp_path / "ledger", tmp_path / "cut"
    await _write(path)
    data = path.read_bytes()
    header_bytes = data.index(b"}}") + 2
    known = -1
    for size in range(header_bytes, len(data)):
        cut.write_bytes(data[:size])
        ledger = Ledger.read(cut)
        assert not ledger.ended
        finals = [post for post in FINALS if post < ledger.posts and ledger.final(post)]
        assert finals == list(range(len(finals)))
        assert len(finals) >= known
        known = len(finals)
        _check(ledger, range(known))
    assert known == len(FINALS)


async def test_ledger_altered_anywhere_is_refused(tmp_path: Path) -> None:
    """One altered byte anywhere is an error, never a torn end."""
    path, bad = tmp_path / "ledger", tmp_path / "bad"
    await _write(path)
    data = path.read_bytes()
    for place in range(len(data)):
        bad.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(LedgerError):
            Ledger.read(bad)


async def test_post_is_on_record_before_take_returns(tmp_path: Path) -> None:
    """After `take` the post is in the file, so a kill cannot hide it."""
    writer = LedgerWriter(tmp_path / "ledger", {"plan": {}})
    for post in (0, RESERVED_POSTS, 2 * RESERVED_POSTS):
        writer.take(post)
        shutil.copy(tmp_path / "ledger", tmp_path / "now")
        ledger = Ledger.read(tmp_path / "now")
        assert ledger.posts > post
        assert ledger.final(post) is None
    writer.close()


async def test_ledger_that_is_being_written_is_not_judged(tmp_path: Path) -> None:
    """A ledger in use is an error; after the end or a kill of its writer it can be read."""
    path = tmp_path / "ledger"
    code = (
        "import sys; from pathlib import Path; from loadgen.proof.ledger import LedgerWriter\n"
        "writer = LedgerWriter(Path(sys.argv[1]), {'plan': {}}); writer.take(0)\n"
        "print(flush=True); sys.stdin.read()"
    )
    generator = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert generator.stdout is not None
    assert await generator.stdout.readline() == b"\n"
    with pytest.raises(LedgerError, match="ledger: a run is still writing it"):
        Ledger.read(path)
    generator.kill()
    await generator.communicate()
    assert Ledger.read(path).posts == RESERVED_POSTS


async def test_full_disk_ends_the_run_and_leaves_a_ledger_that_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed write no post is sent, and the ledger is readable."""
    path = tmp_path / "ledger"
    writer = LedgerWriter(path, {"plan": {}})
    writer.take(0)
    real = os.write
    room = [7]

    def little(fd: int, data: memoryview) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "no space")
        return real(fd, data[: room.pop()])

    monkeypatch.setattr("loadgen.proof.ledger.os.write", little)
    writer.final(0, Final(202, "buffered"), 1)
    await asyncio.sleep(0)
    monkeypatch.undo()
    with pytest.raises(OSError, match="no space"):
        writer.take(RESERVED_POSTS)
    with pytest.raises(OSError, match="no space"):
        writer.end(1)
    writer.close()
    ledger = Ledger.read(path)
    assert (ledger.torn_bytes, ledger.final(0), ledger.ended) == (7, None, False)
