"""`ingest dlq` and the page over a broker's stream."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from ingest.admin.dashboard.letters import Letters
from ingest.dead_letters.folder.segments import live_letters
from ingest.dead_letters.format import key_of
from ingest.dead_letters.identity import DEFAULT_RULES
from ingest.dead_letters.queue import DeadLetterQueue, NewLetter
from ingest.dead_letters.store import Selection
from ingest.model.errors import Refused
from ingest.model.reading import EXHAUSTED
from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats.protocol import DEAD_LETTERS
from ingest.system.state_folder import StateFolder
from tests.support.brokers import LETTERS, api, embedded, joined
from tests.support.commands import Here
from tests.support.letters import drained, invalid, write
from tests.support.replay_rig import live, stream_queue

MULTI = b'{"device_id":"pump-7","ts":1760000000,"values":{"temp":21.5,"humidity":"wet"}}'
GOOD_LATE = b'{"device_id":"mended","metric":"m","ts":1750000000,"value":1}'
# What may differ: where a letter is, and how much room the letters take.
PLACE = re.compile(
    r"^(file|stream|files) .*$|\(\d+ s ago\)|dlq-\S+\.jsonl|INGEST_DLQ", re.MULTILINE
)


@pytest.fixture
def state(nats: EmbeddedBroker, open_tmp: Path) -> StateFolder:
    """Return the state folder in which the broker runs, without letters in files."""
    assert nats.pid is not None
    folder = StateFolder(open_tmp / "state")
    shutil.rmtree(folder.dead_letters, ignore_errors=True)
    return folder


@pytest.fixture
async def queue(nats: EmbeddedBroker) -> AsyncIterator[DeadLetterQueue]:
    """Give dead letters in the stream, with a connection of a writer."""
    async with joined(nats, "writer") as connection:
        yield stream_queue(connection)


async def copy_into_stream(folder: Path, queue: DeadLetterQueue) -> None:
    """Copy the letters of files into the stream; their lines stay the same."""
    for each in live_letters(folder):
        reason = each.letter.reason
        new = NewLetter(each.id, reason, each.failed_us, each.line)
        await queue.backend.write({key_of(each.id, reason): new})


async def test_commands_say_the_same_of_files_and_of_a_stream(
    here: Here,
    state: StateFolder,
    queue: DeadLetterQueue,
    readings_url: str,
    tmp_path: Path,
) -> None:
    """The same letters give the same output and exit codes; what is done is gone in both."""
    serve, copy = StateFolder.open(tmp_path / "serve"), tmp_path / "copy"
    write(serve.dead_letters, [*drained(60, device="pump-1"), *drained(3, reason=EXHAUSTED)])
    write(serve.dead_letters, [invalid(MULTI), invalid(b"\xff\x1b[2J"), invalid(GOOD_LATE)])
    write(serve.dead_letters, [invalid(b"planted", code="not_allowed")])
    shutil.copytree(serve.dead_letters, copy)
    await copy_into_stream(copy, queue)
    connection = await asyncpg.connect(readings_url)
    an_id = live_ids(serve)[0]
    database = ("--database-url", readings_url, "--database-unsafe", "true")
    for words in (
        ("list",),
        ("list", "--limit", 0),
        ("list", "--json"),
        ("list", "--json", "--limit", 2, "--where", "reason=invalid"),
        ("list", "--where", "device_prefix=pump-", "--limit", 5),
        ("list", "--where", "device=nobody"),
        ("list", "abcdef0"),
        ("list", "abc"),
        ("show", an_id[:8]),
        ("show", "--where", "code=wrong_type"),
        ("stats",),
        ("discard",),
        ("discard", "--all"),
        ("discard", an_id, "--yes"),
        ("discard", "--where", f"reason={EXHAUSTED}", "--yes", "--json"),
        ("replay", "--dry-run"),
        ("replay", "--dry-run", "--json"),
        ("replay", "--where", "reason=drained", "--rate", 5_000, *database),
        ("replay", *database),
        ("replay", "--where", "code=not_allowed", "--dry-run"),
        ("list", "--json"),
        ("discard", "--all", "--yes"),
        ("list",),
    ):
        said = []
        for folder in (serve.path, state.path):
            done = await here("dlq", *words, "--state-dir", folder)
            said.append((done.code, *(PLACE.sub("-", each) for each in done[1:])))
            if words[-2:] == database[-2:]:
                await connection.execute("truncate readings")
        assert said[0] == said[1], words
    assert await live(queue.letters) == []
    await connection.close()


def live_ids(state: StateFolder) -> list[str]:
    """Return the ids of the letters in files."""
    return [each.id for each in live_letters(state.dead_letters)]


async def test_stats_name_the_stream(
    here: Here, state: StateFolder, queue: DeadLetterQueue
) -> None:
    """Where files would be counted."""
    await queue.append([*drained(2), invalid(MULTI)])
    done = await here("dlq", "stats", "--state-dir", state.path)
    assert re.search(r"^stream           INGEST_DLQ, \d\.\d KiB$", done.stdout, re.MULTILINE)
    found = json.loads((await here("dlq", "stats", "--json", "--state-dir", state.path)).stdout)
    assert (found["live"], found["files"], found["stream"]) == (3, 0, DEAD_LETTERS)
    done = await here("dlq", "show", "--limit", 1, "--state-dir", state.path)
    assert "stream        INGEST_DLQ, message 3\n" in done.stdout


async def test_letters_in_both_are_told(
    here: Here, state: StateFolder, queue: DeadLetterQueue
) -> None:
    """`--store` chooses; then nothing is said about the others."""
    write(state.dead_letters, drained(2, device="in-files"))
    flags = ("--state-dir", state.path)
    done = await here("dlq", "list", *flags)
    assert done.stdout == ""
    assert "--store files is about the others" in done.stderr
    await queue.append(drained(1, device="in-stream"))
    done = await here("dlq", "list", *flags)
    assert ("in-stream" in done.stdout, "in-files" in done.stdout) == (True, False)
    done = await here("dlq", "list", "--store", "files", *flags)
    assert ("in-files" in done.stdout, done.stderr) == (True, "")
    done = await here("dlq", "list", "--store", "stream", *flags)
    assert ("in-stream" in done.stdout, done.stderr) == (True, "")


async def test_broker_at_rest_is_started_for_its_letters(here: Here, tmp_path: Path) -> None:
    """If it has none, the files count; a state folder that never had a broker starts none."""
    state = StateFolder.open(tmp_path)
    flags = ("--state-dir", tmp_path)
    write(state.dead_letters, drained(1, device="in-files"))
    assert "in-files" in (await here("dlq", "list", *flags)).stdout
    assert not state.broker.exists()
    done = await here("dlq", "list", "--store", "stream", *flags)
    assert (done.code, "`ingest stream apply` makes one" in done.stderr) == (2, True)
    async with embedded(state.broker, wanted=LETTERS):
        pass
    done = await here("dlq", "list", *flags)
    assert ("in-files" in done.stdout, done.stderr) == (True, "")
    async with embedded(state.broker, wanted=None) as nats, joined(nats, "writer") as writer:
        await stream_queue(writer, 10**8).append(drained(1, device="in-stream"))
    done = await here("dlq", "list", *flags)
    assert ("in-stream" in done.stdout, "--store files" in done.stderr) == (True, True)


async def test_configured_broker_needs_no_state_folder(
    here: Here, nats: EmbeddedBroker, queue: DeadLetterQueue, tmp_path: Path
) -> None:
    """On another machine; a broker without the stream is told."""
    await queue.append(drained(2))
    at = nats.published.address("admin")
    url = at.servers[0].replace("nats://", f"nats://admin:{at.password}@")
    flags = ("--broker-url", url, "--state-dir", tmp_path / "nowhere")
    done = await here("dlq", "discard", "--all", "--yes", *flags)
    assert (done.code, done.stdout) == (0, "2 dead letters discarded\n")
    async with joined(nats, "admin") as admin:
        await api(admin, f"STREAM.DELETE.{DEAD_LETTERS}")
    done = await here("dlq", "list", *flags)
    assert done.code == 2
    assert "`ingest stream apply` makes it" in done.stderr


async def test_message_that_is_damaged_on_the_disk_is_counted(here: Here, tmp_path: Path) -> None:
    """The broker leaves it out without a word; the others are listed."""
    state = StateFolder.open(tmp_path)
    letters = [each for n in range(10) for each in drained(1, device=f"device-{n}")]
    async with embedded(state.broker, wanted=LETTERS) as own, joined(own, "writer") as writer:
        await stream_queue(writer, 10**8).append(letters)
    (block,) = (state.broker / "store").rglob("*.blk")
    data = block.read_bytes()
    block.write_bytes(data.replace(b"device-5", b"device-6", 1))
    done = await here("dlq", "list", "--limit", 0, "--state-dir", tmp_path)
    assert "skipped: unreadable: 1 message of INGEST_DLQ, damaged on the broker" in done.stderr
    assert len(done.stdout.splitlines()) == 10
    found = json.loads((await here("dlq", "stats", "--json", "--state-dir", tmp_path)).stdout)
    assert (found["live"], len(found["unreadable"])) == (9, 1)


# The page


async def test_page_says_that_the_broker_is_away(tmp_path: Path) -> None:
    """Not that there are no letters."""
    async with embedded(tmp_path, wanted=LETTERS) as own, joined(own, "writer") as writer:
        queue = stream_queue(writer, 10**8)
        letters = Letters(queue.letters, DEFAULT_RULES, lambda: None)
        await own.stop()
        for call in (
            letters.listed(Selection(), 5),
            letters.counted(Selection()),
            letters.discard(Selection()),
        ):
            with pytest.raises(Refused) as refused:
                await call
            assert refused.value.code == "busy"
            assert "broker" in refused.value.detail
