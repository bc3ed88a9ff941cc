"""`ingest stream` on real brokers: the embedded one, and servers of somebody else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ingest.app import buffer as app_buffer
from ingest.roles.embedded_broker import running_broker
from ingest.roles.nats.connection import connected
from ingest.roles.nats.protocol import STREAM, WRITER
from ingest.system.state_folder import MarkFile, StateFolder, StreamMark
from tests.support.brokers import api, embedded, joined, messages, plain_server, put
from tests.support.commands import Here, ingest

FITS = "the streams and their consumers are as they must be\n"


@asynccontextmanager
async def foreign(folder: Path, port: int, monitor: int, sync: str) -> AsyncIterator[str]:
    """Run a server that is not ours; give its URL."""
    config = f"""
http: "127.0.0.1:{monitor}"
jetstream {{ store_dir: "{folder}/js" {sync} }}
"""
    async with plain_server(config, folder, port) as address:
        yield address.servers[0]


async def test_stream_apply_makes_it_and_a_second_time_changes_nothing(
    here: Here, tmp_path: Path
) -> None:
    """It starts the embedded broker for its own time, and leaves no process and no lock."""
    state = tmp_path / "state"
    words = ("--state-dir", state, "--stream-bytes-max", "64MiB")
    done = await ingest("stream", "apply", *words)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "made the stream INGEST",
        "made the consumer writer of INGEST",
        "made the stream INGEST_DLQ",
        "made the consumer replay of INGEST_DLQ",
    ]
    done = await here("stream", "apply", "--json", *words)
    assert json.loads(done.stdout)["done"] == [
        "the stream INGEST was there, and fits",
        "the consumer writer of INGEST was there, and fits",
        "the stream INGEST_DLQ was there, and fits",
        "the consumer replay of INGEST_DLQ was there, and fits",
    ]
    done = await here("stream", "check", *words)
    assert (done.code, done.stdout) == (0, FITS)
    folder = StateFolder.open(state)
    assert running_broker(folder.broker) is None
    async with embedded(folder.broker, wanted=None):
        pass


async def test_command_notes_what_the_broker_holds_unless_it_lacks_something(
    here: Here, tmp_path: Path
) -> None:
    """What a gateway was told that the stream has must be there: else `up` has to tell of it."""
    folder, words = StateFolder.open(tmp_path), ("--state-dir", tmp_path)
    await here("stream", "apply", *words)
    assert folder.broker_left.exists()
    shown = json.loads((await here("stream", "show", "--json", *words)).stdout)
    made, marks = shown["stream"]["created"], MarkFile(tmp_path)
    for mark, is_noted in (
        (StreamMark("2020-01-01T00:00:00Z"), False),
        (StreamMark(made, acknowledged_to=1), False),
        (StreamMark(made), True),
    ):
        await marks.note(mark, anew=True)
        assert (await here("stream", "show", *words)).code == 0
        assert folder.broker_left.exists() is is_noted, mark


async def test_stream_has_a_consumer_for_each_forwarder_that_is_named(
    here: Here, tmp_path: Path
) -> None:
    """`apply` makes them, `check` and `show` miss them, and none that is not named is touched."""
    folder = StateFolder.open(tmp_path)
    words = ("--state-dir", tmp_path, "--stream-bytes-max", "64MiB")
    async with embedded(folder.broker, wanted=None):
        done = await here("stream", "apply", *words, "--forwards", "billing, alerts")
        assert (done.code, done.stderr) == (0, "")
        for each in ("writer", "forward-billing", "forward-alerts"):
            assert f"made the consumer {each} of INGEST\n" in done.stdout
        assert (await here("stream", "check", *words, "--forwards", "alerts")).stdout == FITS
        more = ("--forwards", "alerts,audit")
        done = await here("stream", "check", *words, *more)
        assert done.code == 1
        assert "the consumer forward-audit of INGEST: is missing\n" in done.stdout
        done = await here("stream", "show", *words, *more)
        assert done.code == 1
        assert "consumer:  forward-audit is missing" in done.stdout
        assert "consumer:  forward-alerts\nwaiting:   0 messages" in done.stdout
        done = await here("stream", "apply", *words, *more)
        assert "made the consumer forward-audit of INGEST\n" in done.stdout
        assert "the consumer forward-alerts of INGEST was there, and fits\n" in done.stdout
        done = await here("stream", "apply", *words, "--forwards", "a,a")
        assert (done.code, "has a name twice" in done.stderr) == (2, True)


async def test_stream_commands_find_the_broker_that_runs(here: Here, tmp_path: Path) -> None:
    """`show` tells what the stream holds; a smaller bound refuses, and removes nothing."""
    folder = StateFolder.open(tmp_path)
    words = ("--state-dir", tmp_path)
    async with embedded(folder.broker, wanted=None) as server:
        done = await here("stream", "show", *words)
        assert done.code == 1
        assert "there is no stream INGEST: `ingest stream apply` makes it\n" in done.stdout
        assert "there is no stream INGEST_DLQ: " in done.stdout
        assert (await here("stream", "apply", *words)).code == 0
        async with joined(server, "gateway") as gateway:
            await put(gateway, *(bytes(400_000) for _ in range(4)))
        done = await here("stream", "show", *words)
        assert done.code == 0
        assert "messages:  4, sequence 1 to 4\n" in done.stdout
        assert "waiting:   4 messages" in done.stdout
        found = json.loads((await here("stream", "show", "--json", *words)).stdout)
        assert found["stream"]["state"]["messages"] == 4
        smaller = ("--stream-bytes-max", "1MiB")
        done = await here("stream", "check", *words, *smaller)
        assert done.code == 1
        assert "max_bytes is 8589934592, not 1048576\n`ingest stream apply`" in done.stdout
        done = await here("stream", "apply", *words, *smaller)
        assert (done.code, done.stderr) == (0, "")
        assert "changed the stream INGEST: max_bytes 8589934592 -> 1048576\n" in done.stdout
        async with joined(server, "admin") as admin:
            assert await messages(admin) == 4


OF_STREAM: dict[str, Any] = {"discard": "old", "max_age": 10**12, "allow_rollup_hdrs": True}
OF_CONSUMER: dict[str, Any] = {
    "max_deliver": 3,
    "ack_wait": 10**9,
    "filter_subject": "ingest.in.0",
}


async def test_difference_is_named_and_apply_changes_it(here: Here, tmp_path: Path) -> None:
    """The check fails until `apply` was used; what the stream holds stays."""
    folder = StateFolder.open(tmp_path)
    flags = ("--state-dir", tmp_path, "--stream-bytes-max", "64MiB")
    of_consumer = f"CONSUMER.CREATE.{STREAM}.{WRITER}"
    async with embedded(folder.broker) as server, joined(server, "admin") as admin:
        async with joined(server, "gateway") as gateway:
            await put(gateway, b"kept")
        config = (await api(admin, f"STREAM.INFO.{STREAM}"))["config"] | OF_STREAM
        assert "error" not in await api(admin, f"STREAM.UPDATE.{STREAM}", config)
        config = (await api(admin, f"CONSUMER.INFO.{STREAM}.{WRITER}"))["config"] | OF_CONSUMER
        body = {"stream_name": STREAM, "config": config, "action": "update"}
        assert "error" not in await api(admin, of_consumer, body)
        done = await here("stream", "check", *flags)
        assert done.code == 1
        for name, value in (OF_STREAM | OF_CONSUMER).items():
            assert f": {name} is {value}, not " in done.stdout
        findings = json.loads((await here("stream", "check", "--json", *flags)).stdout)
        assert not findings["fits"]
        assert {each["what"] for each in findings["findings"]} == {"stream"}
        done = await here("stream", "apply", *flags)
        assert (done.code, done.stderr) == (0, "")
        assert (await here("stream", "check", *flags)).stdout == FITS
        await api(admin, f"CONSUMER.DELETE.{STREAM}.{WRITER}")
        done = await here("stream", "check", *flags)
        assert (done.code, "the consumer writer of INGEST: is missing" in done.stdout) == (1, True)
        assert (await here("stream", "show", *flags)).code == 1
        assert (await here("stream", "apply", *flags)).code == 0
        assert await messages(admin) == 1


async def test_stream_of_somebody_else_is_not_touched(here: Here, tmp_path: Path) -> None:
    """`apply` names what it cannot change, and changes nothing."""
    folder = StateFolder.open(tmp_path)
    async with (
        embedded(folder.broker, wanted=None) as server,
        joined(server, "admin") as admin,
    ):
        theirs = {"name": STREAM, "subjects": ["orders.>"], "retention": "workqueue", "max_age": 0}
        assert "error" not in await api(admin, f"STREAM.CREATE.{STREAM}", theirs)
        done = await here("stream", "apply", "--state-dir", tmp_path)
        assert done.code == 2
        assert "subjects is ['orders.>'], not ['ingest.in.0']" in done.stderr
        assert "retention is workqueue, not limits" in done.stderr
        assert "Nothing was changed" in done.stderr
        assert (await api(admin, f"STREAM.INFO.{STREAM}"))["config"]["discard"] == "old"


async def test_stream_is_marked_for_declared_tables(here: Here, tmp_path: Path) -> None:
    """Until then who has tables does not take posts. It keeps the mark, with its messages."""
    folder, tables = StateFolder.open(tmp_path), tmp_path / "tables.toml"
    tables.write_text('[[table]]\npreset = "telegraf_cpu"\nsince = 2026-12-01T00:00:00Z\n')
    flags = ("--state-dir", tmp_path, "--stream-bytes-max", "64MiB")
    with_tables = (*flags, "--tables-file", tables)
    async with embedded(folder.broker) as server, joined(server, "admin") as admin:
        async with joined(server, "gateway") as gateway:
            await put(gateway, b"kept")
        assert (
            "subjects is ['ingest.in.0'], not "
            in (await here("stream", "check", *with_tables)).stdout
        )
        assert (
            "changed the stream INGEST: subjects"
            in (await here("stream", "apply", *with_tables)).stdout
        )
        for each in (with_tables, flags):
            assert (await here("stream", "apply", *each)).code == 0
        assert (await here("stream", "check", *with_tables)).stdout == FITS
        assert "tables_file is not set here" in (await here("stream", "check", *flags)).stdout
        marked = (await api(admin, f"STREAM.INFO.{STREAM}"))["config"]["subjects"]
        assert marked == ["ingest.in.0", "ingest.in.tables"]
        assert await messages(admin) == 1


async def test_server_that_does_not_sync_is_found_unless_it_is_allowed(
    here: Here, tmp_path: Path, free_port: int
) -> None:
    """By its monitor port; without one, that it is not known is a finding too."""
    monitor = free_port + 1
    flags = ["--stream-bytes-max", "64MiB", "--broker-url"]
    watch = ["--broker-monitor-url", f"http://127.0.0.1:{monitor}"]
    async with foreign(tmp_path, free_port, monitor, "") as url:
        flags.append(url)
        assert (await here("stream", "apply", *flags)).code == 0
        done = await here("stream", "check", *flags, *watch)
        assert done.code == 1
        assert done.stdout.startswith("broker_unsafe: the server")
        assert "sync_interval: always" in done.stdout
        done = await here("stream", "check", "--json", *flags)
        assert done.code == 1
        (found,) = json.loads(done.stdout)["findings"]
        assert found["what"] == "broker_unsafe"
        assert "is not known" in found["fault"]
        done = await here("stream", "check", *flags, "--broker-unsafe", "true")
        assert (done.code, done.stdout) == (0, FITS)
        away = ["--broker-monitor-url", "http://127.0.0.1:1"]
        said = (await here("stream", "check", *flags, *away)).stdout
        assert "does not answer" in said
        assert "broker_unsafe" not in said
        assert "stream apply" not in said, "it would mend nothing"
    async with foreign(tmp_path, free_port, monitor, ", sync_interval: always") as url:
        assert (await here("stream", "check", *flags, *watch)).stdout == FITS


async def test_broker_that_cannot_be_used_is_one_sentence_without_a_password(
    here: Here, tmp_path: Path, free_port: int
) -> None:
    """A role's user; nobody listens; no JetStream; no embedded broker yet."""
    done = await here("stream", "show", "--broker-url", "nats://writer:hunter2@127.0.0.1:1")
    assert done.code == 2
    assert done.stderr == "ingest: the user writer of broker_url may not do this: use admin\n"
    url = f"nats://me:hunter2@127.0.0.1:{free_port}"
    done = await here("stream", "show", "--broker-url", url)
    assert done.code == 2
    assert done.stderr.startswith("ingest: cannot connect to the broker: nats://127.0.0.1:")
    assert "hunter2" not in done.stderr
    async with plain_server("", tmp_path, free_port):
        done = await here("stream", "check", "--broker-url", url)
        assert done.code == 2
        assert "JetStream" in done.stderr
    (tmp_path / "state").mkdir()
    done = await here("stream", "check", "--state-dir", tmp_path / "state")
    assert done.code == 2
    assert "`ingest stream apply` makes one" in done.stderr


async def test_embedded_broker_in_memory_is_refused(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state folder that forgets all at a restart, unless it is allowed."""
    monkeypatch.setattr(app_buffer, "filesystem_of", lambda _: "tmpfs")
    done = await here("stream", "apply", "--state-dir", tmp_path)
    assert done.code == 2
    assert "--broker-unsafe true" in done.stderr


async def test_connection_ends_when_the_servers_password_is_wrong(
    tmp_path: Path, free_port: int
) -> None:
    """A command does not try for ever."""
    config = "authorization { user: me, password: right }"
    async with plain_server(config, tmp_path, free_port) as address:
        right = address._replace(user="me", password="right")
        async with connected(right, "admin") as connection:
            assert connection.up


async def test_doctor_sees_the_streams_and_their_dead_letters(here: Here, tmp_path: Path) -> None:
    """Of a broker that runs; without one it says nothing of it."""
    folder = StateFolder.open(tmp_path / "state")
    words = ("--json", "--state-dir", tmp_path / "state", "--stream-bytes-max", "64MiB")

    async def findings() -> dict[str, tuple[str, str]]:
        checks = json.loads((await here("doctor", *words)).stdout)
        return {each["name"]: (each["state"], each["detail"]) for each in checks}

    assert "broker" not in await findings()
    async with embedded(folder.broker, wanted=None) as server, joined(server, "admin") as admin:
        assert (await findings())["broker"][0] == "FAIL"
        await here("stream", "apply", *words)
        found = await findings()
        assert found["broker"][0] == found["dead letters of the broker"][0] == "ok"
        async with joined(server, "writer") as writer:
            await writer.request("ingest.dlq.invalid", b"{}", 5)
        state, detail = (await findings())["dead letters of the broker"]
        assert (state, detail.split(";")[0]) == ("warn", "1 waiting")
        await api(admin, f"STREAM.DELETE.{STREAM}")
        state, detail = (await findings())["broker"]
        assert state == "FAIL"
        assert f"the stream {STREAM}: is missing" in detail
