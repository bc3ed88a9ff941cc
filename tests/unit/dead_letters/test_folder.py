"""The folder of one process: letters are on the disk or refused, never twice, within the cap."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import resource
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from ingest.dead_letters import queue
from ingest.dead_letters.folder.backend import RETURNING_BYTES_MIN
from ingest.dead_letters.folder.segments import (
    cursor_path,
    folder_bytes,
    new_segment,
    segments,
)
from ingest.dead_letters.format import encode_line
from ingest.dead_letters.identity import letter_id
from ingest.model.errors import DeadLettersBroken, DeadLettersFull, ShareUsed, StartError
from ingest.model.ledger import DeadLetterStats
from ingest.model.reading import DRAINED, EXHAUSTED, REFUSED, Letter, Reading
from ingest.system.files import REAL_CALLS, FileCalls
from tests.support.letters import LetterFiles, drained, invalid, keep, mark, read

T = TypeVar("T")
Files = Callable[..., LetterFiles]


@pytest.fixture
def files() -> Iterator[Files]:
    """Open dead letters in a folder; they are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(folder: Path, **settings: Any) -> LetterFiles:
            store = LetterFiles(folder, **settings)
            stack.callback(store.close)
            return store

        yield make


class Faults:
    """System calls that fail on request: `fail[name]` lists which calls of it (from 1) fail."""

    def __init__(self, **fail: set[int]) -> None:
        self.fail = fail
        self.seen: dict[str, int] = {}
        self.code = errno.EIO
        self.bytes_at_once = 1 << 30

    def calls(self) -> FileCalls:
        """Return the calls for a store."""
        return FileCalls(
            write=lambda fd, data: self._do("write", os.write, fd, data[: self.bytes_at_once]),
            fdatasync=lambda fd: self._do("fdatasync", os.fdatasync, fd),
            fsync=lambda fd: self._do("fsync", os.fsync, fd),
            ftruncate=lambda fd, size: self._do("ftruncate", os.ftruncate, fd, size),
        )

    def _do(self, name: str, call: Callable[..., T], *args: Any) -> T:
        self.seen[name] = self.seen.get(name, 0) + 1
        if self.seen[name] in self.fail.get(name, ()):
            if name == "write":
                os.write(args[0], args[1][:7])
            raise OSError(self.code, os.strerror(self.code))
        return call(*args)


def test_folder_and_files_belong_to_their_owner_only(tmp_path: Path, files: Files) -> None:
    """Under any umask only the owner can read what devices sent."""
    old = os.umask(0)
    try:
        store = files(tmp_path / "dead-letters")
        keep(store, drained(1))
        mark(store)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "dead-letters").stat().st_mode) == 0o700
    for path in (tmp_path / "dead-letters").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_open_in_a_place_that_is_no_folder_is_a_start_error(tmp_path: Path, files: Files) -> None:
    """A file instead of the folder is a StartError."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="file/dead"):
        files(tmp_path / "file" / "dead")


def test_append_beyond_the_ids_kept_is_written_and_counted(tmp_path: Path, files: Files) -> None:
    """Ids in memory are bounded: beyond that, a letter may be written twice, but never left out."""
    store = files(tmp_path, ids_max=3)
    letters = drained(5)
    keep(store, letters)
    keep(store, letters)
    assert len(read(tmp_path)) == 7
    assert store.totals().live == 7
    mark(store)
    assert store.totals().live == 0
    store.close()
    again = files(tmp_path, ids_max=3)
    assert again.totals().live == 0


def test_cap_refuses_whole_requests_and_invalid_items_at_half(tmp_path: Path, files: Files) -> None:
    """Invalid items are kept up to half of the cap, and a request is refused as a whole."""
    store = files(tmp_path, bytes_max=20_000)
    with pytest.raises(DeadLettersFull):
        keep(store, drained(40, reason=REFUSED), sender="10.0.0.1")
    assert read(tmp_path) == []
    keep(store, drained(25, reason=REFUSED), sender="10.0.0.1")
    with pytest.raises(DeadLettersFull, match="up to which invalid items are kept"):
        keep(store, drained(10, reason=REFUSED), sender="10.0.0.1")
    keep(store, drained(25, reason=REFUSED))
    with pytest.raises(DeadLettersFull):
        keep(store, drained(25, reason=REFUSED))
    assert len(read(tmp_path)) == 50
    assert folder_bytes(tmp_path) <= 20_000


def test_one_address_leaves_room_for_others_and_its_share_comes_back(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may use what it leaves free, and what it has used is forgotten in days."""
    now_s = [0.0]
    monkeypatch.setattr(queue, "monotonic_s", lambda: now_s[0])
    store = files(tmp_path, bytes_max=400_000)

    def send(sender: str, count: int) -> int:
        """Send items until one is refused; return how many were kept."""
        for number in range(count):
            item = b'{"device_id":"%d-%s"}' % (next(numbers), b"x" * 500)
            try:
                keep(store, [invalid(item)], sender=sender)
            except ShareUsed:
                return number
        return count

    numbers = itertools.count()
    first = send("10.0.0.1", 1_000)
    fits = 200_000 // (store.totals().size_bytes // first)
    assert fits * 0.45 < first < fits * 0.55
    assert send("10.0.0.2", 1_000) < first * 0.55
    assert send("10.0.0.3", 5) == 5
    assert store.totals().share_used_by == "10.0.0.1 and 1 other", "the first one first"
    assert send("10.0.0.1", 5) == 0
    now_s[0] = 2 * queue.HALF_LIFE_S
    assert store.totals().share_used_by == ""
    assert send("", 1) == 1
    assert 0 < send("10.0.0.1", 1_000) < first / 2
    assert not store.totals().invalid_full
    mark(store)
    store.make_room()
    assert send("10.0.0.1", 50) == 50  # somebody discarded all of it


def test_room_is_full_only_when_no_address_finds_any(tmp_path: Path, files: Files) -> None:
    """Then every post with an invalid item is refused, and the totals say so."""
    store = files(tmp_path, bytes_max=64_000)
    for number in range(1_000):
        with contextlib.suppress(DeadLettersFull):
            item = b'{"device_id":"%d"}' % number
            keep(store, [invalid(item)], sender=f"10.0.{number}.1")
    assert store.totals().invalid_full
    with pytest.raises(DeadLettersFull, match="up to which invalid items are kept"):
        keep(store, [invalid(b"{}" * 200)], sender="10.1.1.1")
    keep(store, drained(5, reason=REFUSED))


def test_cap_one_request_of_a_group_does_not_take_others_down(tmp_path: Path, files: Files) -> None:
    """Each request of a shared write is accepted or refused for itself."""
    store = files(tmp_path, bytes_max=10_000)
    small, large, again = (
        drained(2, reason=REFUSED),
        drained(50, reason=REFUSED),
        drained(1, reason=REFUSED),
    )
    alone = drained(1, reason=REFUSED)  # the others share the write after it
    outcomes = store.append((alone, None), (small, None), (large, None), (again, "10.0.0.1"))
    kept = type(None)
    assert [type(each) for each in outcomes] == [kept, kept, DeadLettersFull, kept]
    assert read(tmp_path) == [*alone, *small, *again]


def fill(store: LetterFiles, reason: str) -> int:
    """Append letters one by one until the store refuses one; return the number before."""
    for count in itertools.count():
        try:
            keep(store, drained(1, reason=reason))
        except DeadLettersFull:
            return count
    raise AssertionError


def test_cap_leaves_a_quarter_to_what_does_not_come_back_by_itself(
    tmp_path: Path, files: Files
) -> None:
    """Letters for the automatic replay, which needs open writes, cannot be the cause of a pause."""
    store = files(tmp_path, bytes_max=40_000)
    fill(store, EXHAUSTED)
    assert 29_000 < folder_bytes(tmp_path) <= 30_000
    keep(store, drained(20, reason=REFUSED))
    assert folder_bytes(tmp_path) <= 40_000
    with pytest.raises(DeadLettersFull, match="of 30000, up to which retries_exhausted are kept"):
        keep(store, drained(1, reason=EXHAUSTED))


@pytest.mark.parametrize("reason", [EXHAUSTED, DRAINED])
@pytest.mark.parametrize("ids_max", [1_000, 10])
def test_cap_refused_rows_do_not_wait_for_what_waits_for_them(
    tmp_path: Path, files: Files, reason: str, ids_max: int
) -> None:
    """Letters for the automatic replay do not count against refused rows.

    That is so too if an earlier process wrote them. After their replay the cap holds again.
    """
    before = files(tmp_path)
    keep(before, drained(100, reason=reason))
    size = folder_bytes(tmp_path)
    before.close()
    store = files(tmp_path, bytes_max=size, ids_max=ids_max)
    assert fill(store, REFUSED) > 50
    assert size * 1.6 < folder_bytes(tmp_path) < size * 2
    mark(store, lambda live: live.letter.reason == reason)
    store.make_room()
    assert fill(store, REFUSED) < 50
    assert folder_bytes(tmp_path) <= size


def test_cap_is_one_for_all_where_nothing_comes_back_by_itself(
    tmp_path: Path, files: Files
) -> None:
    """Without `dlq_auto_replay` the cap is the same for all letters."""
    store = files(tmp_path, bytes_max=20_000, auto_replay=False)
    fill(store, EXHAUSTED)
    assert 19_500 < folder_bytes(tmp_path) <= 20_000
    assert fill(store, REFUSED) == 0


@pytest.mark.parametrize("reason", [EXHAUSTED, DRAINED])
def test_line_that_comes_back_is_never_shorter_than_what_is_counted_for_it(reason: str) -> None:
    """RETURNING_BYTES_MIN is not more than the length of any such line."""
    letter = Letter(reason, "", "", 0, reading=Reading(0, "d", "m", 0.0))
    line = encode_line(letter, id_=letter_id(letter), failed_us=0)
    assert RETURNING_BYTES_MIN <= len(line) < RETURNING_BYTES_MIN * 1.2


def test_cap_does_not_bind_the_end_of_a_drain(tmp_path: Path, files: Files) -> None:
    """Rows that are left at the end of a drain have no other place: they may exceed the cap."""
    store = files(tmp_path, bytes_max=10_000)
    keep(store, drained(100))
    assert folder_bytes(tmp_path) > 10_000
    assert len(read(tmp_path)) == 100
    with pytest.raises(DeadLettersFull):
        keep(store, drained(1, reason=EXHAUSTED))


def test_cap_gives_up_finished_files_before_their_time(tmp_path: Path, files: Files) -> None:
    """When the cap is reached, files without live lines are removed early."""
    store = files(tmp_path, bytes_max=60_000, segment_bytes=4_000, keep_days=7)
    for _ in range(5):
        keep(store, drained(20))
    mark(store)
    keep(store, drained(100))
    assert len(read(tmp_path)) == 100


@pytest.mark.parametrize("noticed_by", ["append", "look", "start"])
def test_folder_full_of_what_is_done_has_room_at_once(
    tmp_path: Path, files: Files, noticed_by: str
) -> None:
    """After `discard --all` by another process; also in the file that is being written."""
    store, hand = files(tmp_path, bytes_max=18_000), files(tmp_path)
    keep(store, drained(25, reason=REFUSED))
    store.look()
    assert store.totals().invalid_full
    mark(hand)
    hand.close()
    if noticed_by == "append":
        letters = drained(20, reason=REFUSED)
        keep(store, letters, sender="10.0.0.1")
        assert read(tmp_path) == letters
        assert store.totals().size_bytes == folder_bytes(tmp_path) < 10_000
        return
    if noticed_by == "look":
        store.look()
    else:
        store.close()
        store = files(tmp_path, bytes_max=18_000)
    assert store.totals() == DeadLetterStats()


def test_cap_goes_on_with_the_file_being_written_if_a_line_is_live(
    tmp_path: Path, files: Files
) -> None:
    """A search for space while the folder is full does not start a new file."""
    store = files(tmp_path, bytes_max=20_000)
    keep(store, drained(25, reason=REFUSED), sender="10.0.0.1")
    mark(store, lambda live: live.offset > 0)
    with pytest.raises(DeadLettersFull):
        keep(store, drained(20, reason=REFUSED), sender="10.0.0.1")
    keep(store, drained(1, reason=REFUSED))
    assert len(segments(tmp_path)) == 1


def test_letter_longer_than_readers_take_is_refused(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that readers would not take into memory is refused."""
    monkeypatch.setattr("ingest.dead_letters.folder.backend.LINE_BYTES_MAX", 1_000)
    store = files(tmp_path)
    with pytest.raises(DeadLettersFull, match="1000 bytes"):
        keep(store, [invalid(b"x" * 1_000)])


def test_segment_is_rotated_and_removed_when_done_and_old(tmp_path: Path, files: Files) -> None:
    """A finished file and its cursor are removed when every line is done, and not before."""
    store = files(tmp_path, segment_bytes=4_000, keep_days=0)
    keep(store, drained(20))
    keep(store, drained(20, reason=EXHAUSTED))
    keep(store, drained(1))
    first, second, current = segments(tmp_path)
    assert store.tidy() == []
    mark(store, lambda live: live.path != second)
    assert store.tidy() == [first]  # the current one is being written
    assert not cursor_path(first).exists()
    assert len(read(tmp_path)) == 20
    store.close()
    again = files(tmp_path, keep_days=0)
    assert again.tidy() == [current]
    assert again.totals().live == 20


def test_segment_done_but_young_is_kept(tmp_path: Path, files: Files) -> None:
    """`dlq_keep_days` counts from the last write or mark."""
    store = files(tmp_path, keep_days=1)
    keep(store, drained(1))
    mark(store)
    store.close()
    again = files(tmp_path, keep_days=1)
    assert again.tidy() == []
    (segment,) = segments(tmp_path)
    for path in (segment, cursor_path(segment)):
        os.utime(path, (0, 0))
    assert again.tidy() == [segment]
    again.close()
    assert [path.name for path in tmp_path.iterdir()] == []


def test_segment_with_an_altered_line_is_left_for_a_person(tmp_path: Path, files: Files) -> None:
    """A file with an altered line is not removed."""
    store = files(tmp_path, keep_days=0)
    letters = drained(2)
    keep(store, letters)
    mark(store)
    store.close()
    (segment,) = segments(tmp_path)
    data = segment.read_bytes()
    segment.write_bytes(data[:20] + b"!" + data[21:])
    again = files(tmp_path, keep_days=0)
    assert again.tidy() == []


def test_segments_removed_by_hand_are_forgotten(tmp_path: Path, files: Files) -> None:
    """A letter whose file somebody removed is written again when it comes again."""
    store = files(tmp_path)
    letters = drained(2)
    keep(store, letters)
    for path in tmp_path.iterdir():
        path.unlink()
    keep(store, letters)
    assert read(tmp_path) == letters
    keep(store, drained(1))
    for path in tmp_path.iterdir():
        path.unlink()
    tmp_path.rmdir()
    keep(store, letters[:1])
    assert read(tmp_path) == letters[:1]


def cut_off(path: Path) -> None:
    """Empty the file, as copytruncate of logrotate and `: > file` do."""
    os.truncate(path, 0)


def replace_by_less(path: Path) -> None:
    """Replace the file without its first line, as `sed -i` does."""
    other = path.with_name("other")
    other.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    other.rename(path)


def replace_by_more(path: Path) -> None:
    """Replace the file by another one that is not smaller."""
    other = path.with_name("other")
    other.write_bytes(b"#" * path.stat().st_size + b"\n")
    other.rename(path)


@pytest.mark.parametrize("change", [cut_off, replace_by_less, replace_by_more])
@pytest.mark.parametrize("is_finished", [False, True])
def test_segment_cut_off_or_replaced_by_hand_is_counted_anew(
    tmp_path: Path, files: Files, change: Callable[[Path], None], *, is_finished: bool
) -> None:
    """A letter whose line was removed is written again when it comes again."""
    store = files(tmp_path, segment_bytes=1 if is_finished else 1 << 26)
    letters, others = drained(2), drained(1)
    keep(store, letters)
    if is_finished:
        keep(store, others)
    change(segments(tmp_path)[0])
    keep(store, letters[:1])
    assert letters[0] in read(tmp_path)
    keep(store, [*letters, *others])
    assert sorted(read(tmp_path)) == sorted([*letters, *others])
    assert store.totals().live == 3


def test_short_writes_are_finished(tmp_path: Path, files: Files) -> None:
    """After a write of a part, the rest is written."""
    faults = Faults()
    faults.bytes_at_once = 11
    store = files(tmp_path, calls=faults.calls())
    letters = drained(3)
    keep(store, letters)
    assert read(tmp_path) == letters
    assert faults.seen["write"] > 60


def test_write_that_takes_nothing_is_an_error_not_a_loop(tmp_path: Path, files: Files) -> None:
    """Zero bytes written is a failure."""
    calls = REAL_CALLS._replace(write=lambda _fd, _data: 0)
    store = files(tmp_path, calls=calls)
    with pytest.raises(DeadLettersBroken):
        keep(store, drained(1))


@pytest.mark.parametrize("name", ["write", "fdatasync"])
@pytest.mark.parametrize("ftruncate_fails", [False, True])
def test_failure_of_one_call_is_made_good_in_a_new_file(
    tmp_path: Path, files: Files, name: str, ftruncate_fails: bool
) -> None:
    """After an error that descriptor is not used again; the letters go to a new file."""
    faults = Faults(**{name: {2}}, ftruncate={1} if ftruncate_fails else set())
    store = files(tmp_path, calls=faults.calls())
    first, second, third = drained(1), drained(2), drained(1)
    for letters in (first, second, third):
        keep(store, letters)
    found = read(tmp_path)
    assert sorted(set(found)) == sorted([*first, *second, *third])
    assert len(segments(tmp_path)) == 2
    if not ftruncate_fails:
        assert found == [*first, *second, *third]
    store.close()
    again = files(tmp_path)
    assert again.totals().live == 4


def test_full_disk_keeps_the_file_and_tries_no_second_one(tmp_path: Path, files: Files) -> None:
    """Without free space no second file is tried, and the first one is used further."""
    faults = Faults(write={2})
    faults.code = errno.ENOSPC
    store = files(tmp_path, calls=faults.calls())
    first, second = drained(1), drained(1)
    keep(store, first)
    with pytest.raises(DeadLettersBroken):
        keep(store, second)
    assert read(tmp_path) == first
    keep(store, second)
    assert read(tmp_path) == [*first, *second]
    assert len(segments(tmp_path)) == 1


@pytest.mark.parametrize("nth", range(1, 12))
@pytest.mark.parametrize("name", ["write", "fdatasync", "fsync", "ftruncate"])
def test_failure_of_the_nth_call_never_loses_a_kept_letter(
    tmp_path: Path, files: Files, name: str, nth: int
) -> None:
    """If any one call fails, letters of successful appends are there and can be read."""
    faults = Faults()
    store = files(tmp_path, segment_bytes=700, calls=faults.calls())
    faults.seen.clear()
    faults.fail[name] = {nth, nth + 1, nth + 3}
    if name == "ftruncate":
        faults.fail["fdatasync"] = set(range(1, 12, 2))
    kept = []
    for _ in range(8):
        letters = drained(2)
        try:
            keep(store, letters)
        except DeadLettersBroken:
            continue
        kept += letters
    store.close()
    assert set(kept) <= set(read(tmp_path))


def test_mark_that_cannot_be_written_leaves_letters_live(tmp_path: Path, files: Files) -> None:
    """If the marks cannot be written, the letters are still live."""
    faults = Faults()
    store = files(tmp_path, calls=faults.calls())
    letters = drained(2)
    keep(store, letters)
    faults.fail["fdatasync"] = {faults.seen["fdatasync"] + 1}
    with pytest.raises(DeadLettersBroken, match="cursor"):
        mark(store)
    assert read(tmp_path) == letters
    mark(store)
    assert store.totals().live == 0


def test_file_size_limit_loses_nothing_that_was_kept(tmp_path: Path, files: Files) -> None:
    """At the kernel's limit of a file's size (RLIMIT_FSIZE) a new file is used."""
    store = files(tmp_path)
    kept = drained(5)
    keep(store, kept)
    (segment,) = segments(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (segment.stat().st_size + 100, hard))
    try:
        more = drained(3)
        keep(store, more)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read(tmp_path) == [*kept, *more]
    assert len(segments(tmp_path)) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 64 KiB; skip the test where that is not possible."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system: run the tests as root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_for_real_keeps_what_was_kept_and_goes_on(small_disk: Path, files: Files) -> None:
    """ENOSPC of a real file system leaves only whole lines."""
    store = files(small_disk / "dead", bytes_max=1 << 30)
    kept: list[Letter] = []
    with contextlib.suppress(DeadLettersBroken):
        while len(kept) < 700:
            letters = drained(7)
            keep(store, letters)
            kept += letters
    assert 0 < len(kept) < 700
    assert read(small_disk / "dead") == kept
    assert all(path.read_bytes().endswith(b"\n") for path in segments(small_disk / "dead"))
    with pytest.raises(DeadLettersBroken, match="No space"):
        keep(store, drained(7))


def test_file_removed_under_the_writer_is_not_written_to(tmp_path: Path) -> None:
    """An append to a file that was removed fails, because nobody could read the letters."""
    file = new_segment(tmp_path)
    file.path.unlink()
    with pytest.raises(FileNotFoundError):
        file.append(b"x")
    assert file.suspect
    file.close()


def test_new_segment_tidied_away_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may remove an empty file before its writer has locked it."""
    removed: list[Path] = []
    flock = fcntl.flock

    def remove_first(fd: int, operation: int) -> None:
        if not removed:
            removed.extend(segments(tmp_path))
            removed[0].unlink()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    file = new_segment(tmp_path)
    assert segments(tmp_path) == [file.path] != removed
    file.close()


def test_folder_that_cannot_be_listed_is_told_and_goes_on(tmp_path: Path, files: Files) -> None:
    """A scan that fails changes no figures."""
    store = files(tmp_path / "dead")
    keep(store, drained(1))
    (tmp_path / "dead").rename(tmp_path / "moved")
    (tmp_path / "dead").write_text("")
    store.look()
    assert store.totals().live == 1


def test_letters_of_a_killed_process_are_on_the_disk_before_they_count_as_kept(
    tmp_path: Path,
    files: Files,
) -> None:
    """The file of a killed process is synced before its letters count as kept."""
    store = files(tmp_path)
    letters = drained(1)
    keep(store, letters)
    store.close()
    faults = Faults()
    again = files(tmp_path, calls=faults.calls())
    assert faults.seen["fdatasync"] == 1
    again.close()
    disturbed = files(tmp_path, calls=Faults(fdatasync={1}).calls())
    keep(disturbed, letters)
    assert read(tmp_path) == letters * 2


@pytest.mark.parametrize("place", ["beside", "elsewhere"])
def test_file_moved_under_the_writer_is_noticed(tmp_path: Path, files: Files, place: str) -> None:
    """Further letters go into a new file; the file that was moved is not changed."""
    folder = tmp_path / "letters"
    store = files(folder)
    keep(store, drained(2))
    (segment,) = segments(folder)
    moved = tmp_path / "kept.txt" if place == "elsewhere" else folder / "kept.txt"
    segment.rename(moved)
    later = drained(3)
    keep(store, later)
    assert read(folder) == later
    assert len(moved.read_text().splitlines()) == 2
