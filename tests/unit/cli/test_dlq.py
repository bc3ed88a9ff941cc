"""`ingest dlq`: readable, safe for a terminal, and nothing is discarded without `--yes`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from ingest.cli.main import main
from ingest.dead_letters.folder.segments import segments, try_replay_lock
from ingest.model.letter import DRAINED, EXHAUSTED, Letter
from tests.support.letters import LetterFiles, drained, invalid, keep, read

Dlq = Callable[..., tuple[int, str, str]]

MULTI = b'{"device_id":"pump-7","ts":1760000000,"values":{"temp":21.5,"humidity":"wet"}}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the dead-letter folder of an empty state folder."""
    return tmp_path / "dead-letters"


@pytest.fixture
def dlq(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Dlq:
    """Return a call of `ingest dlq ..` on that folder, which gives exit code, stdout, stderr."""
    for name in ("INGEST_DATABASE_URL", "INGEST_STATE_DIR", "INGEST_CONFIG"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: object, url: str = "") -> tuple[int, str, str]:
        flags = ["--state-dir", str(tmp_path)]
        if url:
            flags += ["--database-url", url]
            if words[0] == "replay":
                flags += ["--database-unsafe", "true"]  # the tests' server does not fsync
        code = main(["dlq", *map(str, words), *flags])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def write(folder: Path, letters: list[Letter]) -> None:
    """Write letters into the folder."""
    store = LetterFiles(folder)
    keep(store, letters)
    store.close()


def test_dlq_empty_state_folder_is_no_error(dlq: Dlq, folder: Path) -> None:
    """Without letters each command says so, returns 0 and makes nothing."""
    for words in (["list"], ["show"], ["replay"], ["discard", "--all", "--yes"]):
        assert dlq(*words) == (0, "", "no dead letters\n")
        out = dlq(*words, "--json")[1]
        assert words[0] in {"list", "show"} or json.loads(out), "JSON also if there is nothing"
    assert "dead letters     0" in dlq("stats")[1]
    assert dlq("discard", "--all")[0] == 1
    assert not folder.exists()


def test_dlq_list_is_a_line_a_letter_with_an_id_that_show_takes(dlq: Dlq, folder: Path) -> None:
    """`show` takes the ids of the table."""
    write(folder, [*drained(1, device="pump"), invalid(MULTI)._replace(field="values.humidity")])
    code, out, err = dlq("list")
    assert (code, err) == (0, "")
    head, second, first = out.splitlines()
    assert head.split() == ["ID", "FAILED", "AT", "REASON", "CODE", "SENDER", "DEVICE", "WHAT"]
    assert [line[head.index("DEVICE") :].split()[0] for line in (first, second)] == [
        "pump",
        "pump-7",
    ]
    code, out, _ = dlq("show", second.split()[0])
    assert code == 0
    for text in (MULTI.decode(), "values.humidity", "wrong_type", "byte ", "precision     s"):
        assert text in out
    assert "pump-7" not in dlq("show", first.split()[0])[1]


def test_dlq_show_escapes_what_a_device_sent(dlq: Dlq, folder: Path) -> None:
    """Control characters and line feeds of a letter are escaped."""
    write(
        folder,
        [
            invalid(b'{"device_id":"\x1b[2J","x":"\xc2\x9b\n\xe2\x80\xae"}', code="a\x1b]0;t\x07"),
            invalid(b"\xff\xfe\x1b[31m"),
            drained(1, device="d\u202ex")[0],
        ],
    )
    for word in ("list", "show", "stats"):
        out = dlq(word)[1]
        assert all(each.isprintable() for line in out.split("\n") for each in line), out
    assert "\\xff\\xfe\\x1b[31m  (not UTF-8)" in dlq("show")[1]


def test_dlq_list_json_gives_the_lines_as_they_are_kept(dlq: Dlq, folder: Path) -> None:
    """--json prints the lines of the files unchanged."""
    write(folder, drained(3))
    (segment,) = segments(folder)
    lines = segment.read_text().splitlines(True)
    assert dlq("list", "--json")[1] == "".join(lines)
    assert dlq("list", "--json", "--limit", 1)[1] == lines[-1]


def test_dlq_list_shows_the_newest_and_says_how_many_more(dlq: Dlq, folder: Path) -> None:
    """Without --limit the newest 50 are shown; --limit 0 shows all; --json leaves nothing out."""
    for first in (0, 40):  # two files
        write(folder, [invalid(b"%d" % number) for number in range(first, first + 40)])
    code, out, err = dlq("list")
    assert (code, err) == (0, "30 more: --limit 0 shows all\n")
    assert [line.split()[-1] for line in out.splitlines()[1:]] == [
        str(number) for number in range(79, 29, -1)
    ]
    for limit, numbers in ((0, range(80)), (80, range(79, -1, -1))):
        code, out, err = dlq("list", "--limit", limit)
        assert [line.split()[-1] for line in out.splitlines()[1:]] == list(map(str, numbers))
        assert err == ""
    assert len(dlq("show", "--json")[1].splitlines()) == 80


def test_dlq_where_takes_the_beginning_of_a_device(dlq: Dlq, folder: Path) -> None:
    """`device_prefix=` selects names that begin so. `device=` takes `*` as a part of the name."""
    devices = ("pump-1", "pump", "pump*")
    write(folder, [letter for device in devices for letter in drained(1, device=device)])
    wanted = {"device_prefix=pump-": 1, "device_prefix=pump": 3, "device_prefix=x": 0}
    for where, count in (wanted | {"device=pump*": 1, "device=pump": 1, "device=*": 0}).items():
        out = dlq("list", "--where", where)[1]
        assert max(0, len(out.splitlines()) - 1) == count, where
    assert "give the beginning" in dlq("discard", "--where", "device_prefix=", "--yes")[2]


def test_dlq_list_shows_a_letter_of_two_processes_once(dlq: Dlq, folder: Path) -> None:
    """An id in two files counts once, and is discarded in both."""
    letters = drained(2)
    stores = [LetterFiles(folder), LetterFiles(folder)]
    for store in stores:
        keep(store, letters)
        store.close()
    assert len(dlq("list")[1].splitlines()) == 3
    assert json.loads(dlq("stats", "--json")[1])["live"] == 2
    dlq("discard", "--all", "--yes")
    assert read(folder) == []


def test_dlq_stats_tells_what_why_and_damage(dlq: Dlq, folder: Path) -> None:
    """`stats` counts by reason and code, and reports altered and cut lines."""
    write(folder, [*drained(3), invalid(b"1"), invalid(b"2", code="ts_too_old")])
    (segment,) = segments(folder)
    segment.write_bytes(segment.read_bytes().replace(b"stopped", b"STOPPED", 1) + b"torn")
    figures = json.loads(dlq("stats", "--json")[1])
    assert (figures["live"], figures["altered"], figures["torn"], figures["files"]) == (4, 1, 1, 1)
    assert {"reason": "drained", "code": "", "letters": 2} in figures["by"]
    text = dlq("stats")[1]
    assert "1 altered; 1 cut off" in text
    assert "1 altered" in dlq("list")[2]


@pytest.mark.parametrize(
    "words",
    [
        ["list", "--where", "colour=red"],
        ["list", "--where", "reason=bad"],
        ["list", "--where", "since=yesterday"],
        ["list", "--where", "code=1,code=2"],
        ["list", "abc"],
        ["discard"],
        ["discard", "--all", "--where", "code=1"],
        ["list", "--limit", "-1"],
        ["show", "--limit", "x"],
        ["replay", "--edited"],
        ["replay", "--rate", "0"],
        ["replay", "--file", "x", "--where", "code=1"],
        ["replay", "--file", "no-such-copy"],
        ["nothing"],
    ],
)
def test_dlq_wrong_words_are_one_sentence(dlq: Dlq, folder: Path, words: list[str]) -> None:
    """A wrong argument gives one line and exit code 2, and nothing is done."""
    write(folder, drained(1))
    code, out, err = dlq(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert len(read(folder)) == 1


def test_dlq_where_joins_conditions(dlq: Dlq, folder: Path) -> None:
    """Conditions may be given in one --where or in several."""
    write(folder, [*drained(1, device="a,b"), *drained(1, reason=EXHAUSTED), invalid(MULTI)])
    assert len(dlq("list", "--where", "reason=drained,device=a,b")[1].splitlines()) == 2
    both = ("--where", "reason=drained", "--where", "device=c")
    assert dlq("list", *both)[1:] == ("", "no such dead letter\n")
    assert len(dlq("list", "--where", "since=2020-01-01T00:00:00Z")[1].splitlines()) == 4


def test_dlq_discard_asks_for_yes_and_takes_only_what_was_named(dlq: Dlq, folder: Path) -> None:
    """Without --yes `discard` only counts."""
    write(folder, [*drained(2), *drained(1, reason=EXHAUSTED)])
    assert "2 dead letters would be discarded" in dlq("discard", "--where", "reason=drained")[1]
    assert len(read(folder)) == 3
    assert json.loads(dlq("discard", "--all", "--json")[1]) == {"would_be_discarded": 3}
    assert dlq("discard", "--where", "reason=drained", "--yes")[:2] == (
        0,
        "2 dead letters discarded\n",
    )
    (left,) = read(folder)
    assert left.reason == EXHAUSTED
    an_id = dlq("list")[1].splitlines()[1].split()[0]
    assert dlq("discard", an_id, "--yes", "--json")[:2] == (0, '{"discarded": 1}\n')


def test_dlq_second_replayer_is_refused(
    dlq: Dlq, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another replay has the lock, `replay` fails after a while."""
    write(folder, drained(1))
    monkeypatch.setattr("ingest.dead_letters.folder.store.LOCK_S_MAX", 0.3)
    lock = try_replay_lock(folder)
    assert lock is not None
    code, _, err = dlq("replay", "--dry-run")
    assert code == 2
    assert "another replay" in err
    lock.close()
    assert dlq("replay", "--dry-run")[0] == 0


def test_dlq_replay_marks_what_came_in(dlq: Dlq, folder: Path, readings_url: str) -> None:
    """Letters are stored once; refused ones stay and are reported with their reason."""
    write(folder, [*drained(3), invalid(MULTI)])
    assert dlq("replay", "--dry-run")[1].startswith("3 dead letters would be replayed")
    found = json.loads(dlq("replay", "--dry-run", "--json")[1])
    assert (found["replayed"], found["refused"]) == (3, {"wrong_type": 1})
    assert found["refusals"][0]["code"] == "wrong_type"
    assert len(read(folder)) == 4
    code, out, _ = dlq("replay", "--rate", 1_000, url=readings_url)
    assert code == 1
    assert "3 dead letters replayed: 3 readings, 3 new, 0 duplicates\n1 still refused" in out
    assert "wrong_type: values.humidity" in out
    assert (
        "0 dead letters replayed"
        in dlq("replay", "--where", f"reason={DRAINED}", url=readings_url)[1]
    )
    assert read(folder) == [invalid(MULTI)]


def test_dlq_replay_keeps_what_a_token_may_do(
    dlq: Dlq, folder: Path, readings_url: str, tmp_path: Path
) -> None:
    """What it posted for another device stays, whatever else was wrong, until it is asked for."""
    item = '{"device_id":"%s","metric":"m","ts":1777636800,"value":1}'
    own, other, late = (
        invalid((item % device).encode(), code=code)._replace(sender="gate", devices=("g-*",))
        for device, code in (
            ("g-1", "ts_in_future"),
            ("planted", "not_allowed"),
            ("planted-2", "ts_in_future"),
        )
    )
    write(folder, [own, other, late])
    code, out, err = dlq("replay", url=readings_url)
    assert code == 1
    assert "1 dead letter replayed" in out
    assert "1  not_allowed" in out
    assert err.startswith("1 dead letter left: not_allowed")
    assert read(folder) == [other, late]
    assert dlq("list")[1].count("  gate  ") == 2
    assert "may speak for g-*" in dlq("show")[1]
    copy = tmp_path / "copy"
    copy.write_text(dlq("show", "--json")[1])
    found = json.loads(dlq("replay", "--file", copy, "--json", url=readings_url)[1])
    assert (found["replayed"], found["not_allowed_left"]) == (0, 1)
    assert "1 dead letter r" in dlq("replay", "--where", "code=not_allowed", url=readings_url)[1]
    assert read(folder) == [late]
    assert asyncio.run(_count(readings_url)) == 2


async def _count(url: str) -> int:
    connection = await asyncpg.connect(url)
    count: int = await connection.fetchval("select count(*) from readings")
    await connection.close()
    return count


def test_dlq_replay_of_an_edited_copy_brings_it_in_and_ends_the_letter(
    dlq: Dlq, folder: Path, readings_url: str, tmp_path: Path
) -> None:
    """Lines of an edited copy are stored; wrong lines are reported by their number."""
    letter = invalid(MULTI)._replace(field="values.humidity")
    other = invalid(b'{"device_id":"x","ts":1,"metric":"m","value":null}')
    write(folder, [letter, other, *drained(1)])
    copy = tmp_path / "copy.jsonl"
    lines = dlq("list", "--json")[1].splitlines()
    first = lines[0].replace('\\"wet\\"', "40")
    reading = json.loads(lines[2])
    reading["reading"]["value"] = 7
    copy.write_text(f"{first}\n\n{lines[1][:30]}\n{{}}\n{lines[1]}\n{json.dumps(reading)}\n")
    code, out, err = dlq("replay", "--file", copy, url=readings_url)
    assert code == 1
    assert "line 1: the checksum does not match" in err
    assert "0 dead letters replayed" in out
    code, out, err = dlq("replay", "--file", copy, "--edited", url=readings_url)
    assert code == 1
    assert "2 dead letters replayed: 3 readings, 3 new" in out
    assert "line 5" in out
    assert "line 3: not JSON" in err
    assert "line 4: not a dead letter" in err
    assert read(folder) == [other]
    code, out, _ = dlq("replay", "--file", copy, "--edited", url=readings_url)
    assert "0 new, 3 duplicates" in out


def test_dlq_replay_without_a_database_says_so_and_keeps_all(dlq: Dlq, folder: Path) -> None:
    """Without a database, `replay` says so and keeps all letters."""
    write(folder, drained(1))
    code, out, err = dlq("replay", url="postgresql://nobody@127.0.0.1:1/none")
    assert code == 1
    assert "0 dead letters replayed" in out
    assert "run it again" in err
    assert len(read(folder)) == 1


def test_dlq_replay_tells_the_first_of_many(dlq: Dlq, folder: Path, tmp_path: Path) -> None:
    """A long list of wrong lines is cut, with the number of all."""
    write(folder, [invalid(b"%d" % number) for number in range(30)])
    out = dlq("replay", "--dry-run")[1]
    assert "30  not_an_object" in out
    assert out.endswith("(only the first ones are shown)\n")
    copy = tmp_path / "copy"
    copy.write_text("x\n" * 30)
    err = dlq("replay", "--dry-run", "--file", copy)[2]
    assert err.endswith("not replayed: 30 lines in all\n")


def test_dlq_folder_that_cannot_be_read_is_told(dlq: Dlq, folder: Path) -> None:
    """A file instead of the folder gives one sentence."""
    folder.write_text("")
    code, _, err = dlq("list")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_dlq_output_that_cannot_be_written_is_not_blamed_on_a_file(
    folder: Path, unbuffered: str
) -> None:
    """A full disk behind `> file` is reported as such, with the place of the dead letters."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ingest", "dlq", "stats", "--state-dir", str(folder.parent)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 2
    assert done.stderr.startswith("ingest: dlq stats: No space left on device (")


def test_dlq_list_into_a_pipe_that_closes_says_nothing(folder: Path) -> None:
    """`ingest dlq list | head -1` is no error."""
    write(folder, [invalid(b"%d" % n) for n in range(3)])
    command = [sys.executable, "-m", "ingest", "dlq", "list", "--state-dir", str(folder.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
