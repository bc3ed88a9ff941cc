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

from ingest.cli.commands import main
from ingest.dead_letters.folder.segments import segments, try_replay_lock
from ingest.model.reading import DRAINED, EXHAUSTED, Letter
from ingest.system.state_folder import MarkFile, StreamMark
from tests.support.commands import Here, Step
from tests.support.letters import drained, invalid, read, write

Dlq = Callable[..., tuple[int, str, str]]

MULTI = b'{"device_id":"pump-7","ts":1760000000,"values":{"temp":21.5,"humidity":"wet"}}'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the dead-letter folder of an empty state folder."""
    return tmp_path / "dead-letters"


@pytest.fixture
def dlq(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Dlq:
    """Return a call of `ingest dlq ..` on that folder, which gives exit code, stdout, stderr."""

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


DEVICES = [drained(1, device=device)[0] for device in ("pump-1", "pump", "pump*")]
KINDS = [*drained(1, device="a,b"), *drained(1, reason=EXHAUSTED), invalid(MULTI)]
HOSTILE = [
    invalid(b'{"device_id":"\x1b[2J","x":"\xc2\x9b\n\xe2\x80\xae"}', code="a\x1b]0;t\x07"),
    invalid(b"\xff\xfe\x1b[31m"),
    drained(1, device="d\u202ex")[0],
]
AWAY = "--database-url postgresql://nobody@127.0.0.1:1/none --database-unsafe true"
# Of each story: letters by file, commands, and how many letters are left.
STORIES: dict[str, tuple[list[list[Letter]], list[Step], int]] = {
    "nothing": (
        [],
        [
            *(Step(word, err=["no dead letters"], lines=0) for word in ("list", "show", "replay")),
            Step("list", err=["in the stream of that broker: give --broker-url"]),
            Step("discard --all --yes", err=["no dead letters"], lines=0),
            Step("replay --json", out=["{"]),
            Step("discard --all --yes --json", out=["{"]),
            Step("stats", out=["dead letters     0"]),
            Step("discard --all", 1),
        ],
        0,
    ),
    "what a device sent": (
        [HOSTILE],
        [
            Step("list", lines=4),
            Step("show", out=["\\xff\\xfe\\x1b[31m  (not UTF-8)"]),
            Step("stats"),
        ],
        3,
    ),
    "newest": (
        [[invalid(b"%d" % at) for at in range(first, first + 40)] for first in (0, 40)],
        [
            Step("list", out=["79\n", "30\n"], err=["30 more: --limit 0 shows all\n"], lines=51),
            Step("list --limit 0", lines=81),
            Step("list --limit 80", lines=81),
            Step("show --json", lines=80),
        ],
        80,
    ),
    "begin of a device": (
        [DEVICES],
        [
            Step("list --where device_prefix=pump-", lines=2),
            Step("list --where device_prefix=pump", lines=4),
            Step("list --where device_prefix=x", lines=0),
            Step("list --where 'device=pump*'", lines=2),
            Step("list --where device=pump", lines=2),
            Step("list --where 'device=*'", lines=0),
            Step("discard --where device_prefix= --yes", 2, err=["give the beginning"]),
        ],
        3,
    ),
    "one letter of two processes": (
        [drained(2)] * 2,
        [
            Step("list", lines=3),
            Step("stats --json", out=['"live": 2']),
            Step("discard --all --yes"),
        ],
        0,
    ),
    "conditions": (
        [KINDS],
        [
            Step("list --where reason=drained,device=a,b", lines=2),
            Step(
                "list --where reason=drained --where device=c",
                err=["no such dead letter\n"],
                lines=0,
            ),
            Step("list --where since=2020-01-01T00:00:00Z", lines=4),
        ],
        3,
    ),
    "discard": (
        [[*drained(2), *drained(1, reason=EXHAUSTED)]],
        [
            Step("discard --where reason=drained", 1, ["2 dead letters would be discarded"]),
            Step("discard --all --json", 1, ['"would_be_discarded": 3']),
            Step("discard --where reason=drained --yes", out=["2 dead letters discarded\n"]),
            Step("list", out=[EXHAUSTED], lines=2),
        ],
        1,
    ),
    "no database": (
        [drained(1)],
        [Step(f"replay {AWAY}", 2, err=["Connect call failed"])],
        1,
    ),
    "many": (
        [[invalid(b"%d" % number) for number in range(30)]],
        [
            Step(
                "replay --dry-run",
                1,
                ["30  not_an_object", "(only the first ones are shown)\n"],
            ),
            Step(
                "replay --dry-run --file {folder}/copy",
                1,
                err=["not replayed: 30 lines in all\n"],
            ),
        ],
        30,
    ),
}


@pytest.mark.parametrize("name", STORIES)
def test_dlq_tells_what_the_story_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path, name: str
) -> None:
    """Nothing that a device sent acts on a terminal; a command without letters makes nothing."""
    letters, steps, left = STORIES[name]
    for each in letters:
        write(folder, each)
    (tmp_path / "copy").write_text("x\n" * 30)
    asyncio.run(MarkFile(tmp_path, "nats1:4222").note(StreamMark("monday")))  # as a gateway does
    here = Here(capsys, lambda words: main(["dlq", *words]))
    assert here.faults(steps, "--state-dir", tmp_path, folder=tmp_path) == []
    assert folder.exists() == bool(letters)
    assert len(read(folder) if letters else []) == left


def test_dlq_list_is_a_line_a_letter_with_an_id_that_show_takes(dlq: Dlq, folder: Path) -> None:
    """The newest first; `discard` takes it too."""
    write(folder, [*drained(1, device="pump"), invalid(MULTI)._replace(field="values.humidity")])
    head, first, second = dlq("list")[1].splitlines()
    assert head.split() == ["ID", "FAILED", "AT", "REASON", "CODE", "SENDER", "DEVICE", "WHAT"]
    assert "pump-7" not in dlq("show", second.split()[0])[1] + second
    shown = dlq("show", first.split()[0])[1]
    for told in (MULTI.decode(), "values.humidity", "wrong_type", "byte ", "precision     s"):
        assert told in shown
    assert json.loads(dlq("discard", first.split()[0], "--yes", "--json")[1]) == {"discarded": 1}
    assert len(read(folder)) == 1


def test_dlq_list_json_gives_the_lines_as_they_are_kept(dlq: Dlq, folder: Path) -> None:
    """--json prints the lines of the files unchanged."""
    write(folder, drained(3))
    (segment,) = segments(folder)
    lines = segment.read_text().splitlines(True)
    assert dlq("list", "--json")[1] == "".join(lines)
    assert dlq("list", "--json", "--limit", 1)[1] == lines[-1]


def test_dlq_stats_tells_what_why_and_damage(dlq: Dlq, folder: Path) -> None:
    """`stats` counts by reason and code, and reports altered and cut lines."""
    write(folder, [*drained(3), invalid(b"1"), invalid(b"2", code="ts_too_old")])
    (segment,) = segments(folder)
    segment.write_bytes(segment.read_bytes().replace(b"stopped", b"STOPPED", 1) + b"torn")
    figures = json.loads(dlq("stats", "--json")[1])
    assert (figures["live"], figures["altered"], figures["torn"], figures["files"]) == (4, 1, 1, 1)
    assert {"reason": "drained", "code": "", "letters": 2} in figures["by"]
    assert "1 altered; 1 cut off" in dlq("stats")[1]
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


DATABASE = "--database-url {url} --database-unsafe true"  # the tests' server does not fsync
ITEM = '{"device_id":"%s","metric":"m","ts":1777636800,"value":1}'
OWN, OTHER, LATE = (
    invalid((ITEM % device).encode(), code=code)._replace(sender="gate", devices=("g-*",))
    for device, code in (
        ("g-1", "ts_in_future"),
        ("planted", "not_allowed"),
        ("planted-2", "ts_in_future"),
    )
)
# Letters, commands, the letters that are left, and the rows that are stored.
REPLAYS: dict[str, tuple[list[Letter], list[Step], list[Letter], int]] = {
    "what came in is marked": (
        [*drained(3), invalid(MULTI)],
        [
            Step("replay --dry-run", 1, ["3 dead letters would be replayed"]),
            Step(
                "replay --dry-run --json",
                1,
                ['"replayed": 3', '"wrong_type": 1', '"code": "wrong_type"'],
            ),
            Step("list", lines=5),
            Step(
                f"replay --rate 1000 {DATABASE}",
                1,
                [
                    "3 dead letters replayed: 3 readings, 3 new, 0 duplicates\n1 still refused",
                    "wrong_type: values.humidity",
                ],
            ),
            Step(f"replay --where reason={DRAINED} {DATABASE}", out=["0 dead letters replayed"]),
        ],
        [invalid(MULTI)],
        3,
    ),
    # What it posted for another device stays, whatever else was wrong, until it is asked for.
    "what a token may do": (
        [OWN, OTHER, LATE],
        [
            Step(
                f"replay {DATABASE}",
                1,
                ["1 dead letter replayed", "1  not_allowed"],
                ["1 dead letter left: not_allowed"],
            ),
            Step("list", out=["  gate  "], lines=3),
            Step("show", out=["may speak for g-*"]),
            Step(f"replay --file {{folder}}/copy --json {DATABASE}", 1, ['"not_allowed_left": 1']),
            Step(f"replay --where code=not_allowed {DATABASE}", out=["1 dead letter r"]),
        ],
        [LATE],
        2,
    ),
}


@pytest.mark.parametrize("name", REPLAYS)
def test_dlq_replay_brings_in_and_leaves_what_the_story_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path, readings_url: str, name: str
) -> None:
    """Letters are stored once; refused ones stay and are told with their reason."""
    letters, steps, left, rows = REPLAYS[name]
    write(folder, letters)
    (segment,) = segments(folder)
    (tmp_path / "copy").write_bytes(segment.read_bytes())
    here = Here(capsys, lambda words: main(["dlq", *words]))
    assert here.faults(steps, "--state-dir", tmp_path, folder=tmp_path, url=readings_url) == []
    assert read(folder) == left
    assert asyncio.run(_count(readings_url)) == rows


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
