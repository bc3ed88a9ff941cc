"""`ingest forward` as a process: kills, signals, a service as the target, a secret that changes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from ingest.roles.embedded_broker import EmbeddedBroker
from ingest.roles.nats.connection import BrokerConnection
from ingest.roles.nats.protocol import FORWARD, STREAM
from ingest.roles.nats.streams import wanted_readings
from ingest.system.state_folder import StateFolder
from tests.support.brokers import api, embedded, joined, put, until
from tests.support.commands import Here
from tests.support.documents import DOCUMENTS, fences
from tests.support.rows import readings
from tests.support.webhook import Came, Webhook, items_of, messages_of
from tests.system.service import REPOSITORY, environment
from tests.system.test_up_roles import real_up

CONSUMER = FORWARD + "x"


MIB = 1024**2


@asynccontextmanager
async def broker_in(state: Path, size: int = 64 * MIB) -> AsyncIterator[EmbeddedBroker]:
    """Run a broker in a state folder, as `ingest up` does, with a forwarder's consumer."""
    folder = StateFolder.open(state)
    wanted = wanted_readings(replicas=1, bytes_max=size, forwards=(CONSUMER,))
    async with embedded(folder.broker, wanted=wanted) as server:
        yield server


class Process:
    """One `ingest forward`, and what it has printed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().rstrip())

    @property
    def admin_url(self) -> str:
        """Where its probes are; empty until it has started."""
        found = re.search(r"metrics: (http://\S+)", "\n".join(self.lines))
        return found[1] if found else ""

    async def ask(self, path: str) -> tuple[int, str]:
        """Return status and text of a page of its admin port."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(self.admin_url + path) as response,
        ):
            return response.status, await response.text()

    async def end(self, number: int) -> tuple[int, str]:
        """Send a signal; return the exit code and the last line."""
        self.process.send_signal(number)
        async with asyncio.timeout(30):
            code = await self.process.wait()
            await self._reading
        return code, self.lines[-1] if self.lines else ""


@asynccontextmanager
async def forward(
    state: Path, url: str | None, *more: object, measured: bool = False
) -> AsyncIterator[Process]:
    """Run a forwarder until the end of the block, at the latest; `measured` for coverage."""
    target = () if url is None else ("--to", url)
    flags = ("--name", "x", *target, "--state-dir", state, "--admin-listen", "127.0.0.1:0")
    words = [str(each) for each in (*flags, "--send-retry-s-max", "0.2", *more)]
    started = Process(
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ingest", "forward", *words),
            cwd=REPOSITORY,
            env=environment(measured=measured),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=MIB,
        )
    )
    try:
        await until(lambda: started.admin_url or started.process.returncode is not None, 30)
        assert started.admin_url, started.lines
        yield started
    finally:
        if started.process.returncode is None:
            await started.end(signal.SIGKILL)


async def set_ack_wait(admin: BrokerConnection, seconds: float) -> None:
    """Let messages of a killed process come again sooner."""
    config = (await api(admin, f"CONSUMER.INFO.{STREAM}.{CONSUMER}"))["config"]
    config["ack_wait"] = int(seconds * 1e9)
    body = {"stream_name": STREAM, "config": config, "action": "update"}
    assert "error" not in await api(admin, f"CONSUMER.CREATE.{STREAM}.{CONSUMER}", body)


async def fill(server: EmbeddedBroker, messages: list[bytes]) -> None:
    """Put messages into the stream."""
    async with joined(server, "gateway") as gateway:
        await put(gateway, *messages)


async def test_killed_forwarder_sends_the_same_posts_again(tmp_path: Path) -> None:
    """SIGKILL after the target has kept a post, before it has answered: by its key it is once."""
    those = readings(600)
    kept_before: set[str] = set()

    async def behave(came: Came) -> web.StreamResponse | None:
        if came.number in (12, 30):
            target.keep(came)
            kept_before.add(came.key)
            running[-1].process.kill()
            await asyncio.sleep(30)
        return None

    running: list[Process] = []
    async with broker_in(tmp_path) as server, Webhook(behave) as target:
        async with joined(server, "admin") as admin:
            await set_ack_wait(admin, 1)
        await fill(server, messages_of(those, 10))

        def ended() -> bool:
            keys = [came.key for came in target.came]
            came_again = all(keys.count(each) > 1 for each in kept_before)
            is_done = len(target.items) == 600 and came_again
            return running[-1].process.returncode is not None or is_done

        for _ in range(3):
            async with forward(tmp_path, target.url) as process:
                running.append(process)
                await until(ended)
        assert sorted(target.items) == sorted(items_of(those))
        again = [came.key for came in target.came]
        assert len(kept_before) == 2
        assert all(again.count(each) > 1 for each in kept_before)


async def test_probes_metrics_and_the_end_of_a_process(tmp_path: Path, here: Here) -> None:
    """It says what it does, and on SIGTERM what it has done, with exit code 0."""
    async with broker_in(tmp_path) as server, Webhook() as target:
        await fill(server, messages_of(readings(50), 10))
        url = tmp_path / "url"
        url.write_text(target.url)
        flags = ("--to-file", url, "--device", "device-[0-3]")
        async with forward(tmp_path, None, *flags, measured=True) as running:
            assert running.lines[-1].startswith("forwards x to http://127.0.0.1:")
            assert "token=secret" not in running.lines[-1]
            await until(lambda: len(target.kept) == 5)
            assert await running.ask("/livez") == (200, "ok\n")
            status, text = await running.ask("/readyz")
            assert (status, json.loads(text)["state"]) == (200, "forwarding")
            _, text = await running.ask("/metrics")
            sent, filtered = len(target.items), 50 - len(target.items)
            assert f'ingest_forward_readings_total{{forward="x",outcome="sent"}} {sent}.0' in text
            assert 'ingest_forward_posts_total{forward="x",status="204"} 5.0' in text
            assert 'ingest_forward_up{forward="x"} 1.0' in text
            assert "process_resident_memory_bytes" in text
            second = await here(
                *("forward", "--name", "x", "--to", target.url, "--state-dir", tmp_path)
            )
            assert second.code == 2
            assert "already uses the state folder" in second.stderr
            assert await running.end(signal.SIGTERM) == (
                0,
                f"drained: sent={sent} filtered={filtered} dead_lettered=0 skipped=0",
            )


async def test_broker_that_ends_and_comes_back_costs_nothing(tmp_path: Path) -> None:
    """The forwarder finds its new port and its new passwords."""
    those = readings(100)
    messages = messages_of(those, 10)
    async with Webhook() as target, broker_in(tmp_path) as server:
        await fill(server, messages[:5])
        async with forward(tmp_path, target.url) as running:
            await until(lambda: len(target.items) == 50)
            await server.stop()
            async with asyncio.timeout(10):
                while (await running.ask("/readyz"))[0] != 503:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            async with broker_in(tmp_path) as server_again:
                await fill(server_again, messages[5:])
                await until(lambda: len(target.items) == 100)
                assert (await running.end(signal.SIGTERM))[0] == 0
    assert sorted(target.items) == sorted(items_of(those))


@pytest.mark.slow
async def test_up_forwards_what_its_gateway_takes(open_tmp_path: Path, readings_url: str) -> None:
    """`up` makes the consumer, and the table has the readings too, also of `ack=committed`."""
    async with (
        real_up(open_tmp_path, readings_url, forwards="x", stream_bytes_max="64MiB") as service,
        Webhook() as target,
        forward(service.state_dir, target.url) as running,
    ):
        await service.wait_state("accepting")
        bodies = [
            [{"device_id": f"d{n}", "metric": "m", "ts": 1_750_000_000 + n + m, "value": n}]
            for n in range(20)
            for m in (0, 1_000)
        ]
        while (await service.post(bodies[0], ack="committed")).status == 503:  # noqa: ASYNC110
            await asyncio.sleep(0.1)  # no writer has looked at the table yet
        posts = (service.post(each, ack="committed") for each in bodies[1:20])
        assert {each.status for each in await asyncio.gather(*posts)} == {200}
        answers = await asyncio.gather(*map(service.post, bodies[20:]))
        assert {each.status for each in answers} == {202}
        await until(lambda: len(target.items) == 40)
        assert (await running.end(signal.SIGTERM))[0] == 0
        code, output = await service.stop()
        assert code == 0, output
        assert "drained: committed=40 dead_lettered=0 held=0 lost=0" in output
    assert sorted({each[1] for each in target.items}) == sorted({f"d{n}" for n in range(20)})


def documented_check() -> Callable[[Mapping[str, str], bytes, bytes], bool]:
    """Return the function that docs/grow/forward.md shows."""
    (code,) = (
        each.text for each in fences(DOCUMENTS["docs/grow/forward.md"]) if each[0] == "python"
    )
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102  it is ours
    check: Callable[[Mapping[str, str], bytes, bytes], bool] = names["is_ours"]
    return check


async def typed(command: str, folder: Path, env: Mapping[str, str]) -> asyncio.subprocess.Process:
    """Start a block of a page in a shell, in a group of processes of its own."""
    program = f'ingest() {{ "{sys.executable}" -P -m ingest "$@"; }}\n'
    return await asyncio.create_subprocess_exec(
        *("bash", "-c", program + command),
        cwd=folder,
        env=environment({"PYTHONPATH": str(REPOSITORY), **env}),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.skipif(shutil.which("jq") is None, reason="no jq: apt-get install jq")
async def test_commands_of_the_page_forward_and_show_what_was_refused(tmp_path: Path) -> None:
    """docs/grow/forward.md: a consumer is made, readings of `plant-*` are sent and signed.

    The target refuses the first post; the last command prints its readings.
    """
    page = fences(DOCUMENTS["docs/grow/forward.md"])
    start, show = (each.text for each in page if each.language == "sh")
    is_ours, secret = documented_check(), b"of 16 characters, at least"
    (tmp_path / "secret").write_bytes(secret)
    those = readings(20, device="plant")

    async def behave(came: Came) -> web.StreamResponse | None:
        is_first = came.number == 1 or not is_ours(came.headers, came.body, secret)
        return web.Response(status=400) if is_first else None

    env = {
        "INGEST_STATE_DIR": str(tmp_path / "state"),
        "INGEST_STREAM_BYTES_MAX": "64MiB",
        "INGEST_ADMIN_LISTEN": "127.0.0.1:0",
    }
    async with broker_in(tmp_path / "state") as server, Webhook(behave) as target:
        await fill(server, messages_of([*those, *readings(10)], 10))
        there = start.replace("https://billing.example/readings", f"'{target.url}'")
        running = await typed(there, tmp_path, env)
        refused: list[dict[str, Any]] = []
        try:
            async with asyncio.timeout(60):
                while len(target.items) + len(refused) < len(those):
                    shown = await typed(show.replace("NAME", "billing"), tmp_path, env)
                    refused = json.loads((await shown.communicate())[0])
        finally:
            os.killpg(running.pid, signal.SIGTERM)
            await running.communicate()
        came = json.loads(target.came[0].body)
        assert len(refused) == len(came)
        got = [*target.items, *(tuple(each.values()) for each in refused)]
        assert sorted(got) == sorted(items_of(those))


async def test_target_checks_the_signature_as_the_document_shows(
    tmp_path: Path, here: Here
) -> None:
    """With a wrong secret it refuses; when the file is corrected, the rest is sent."""
    those = readings(400)
    secret = tmp_path / "secret"
    secret.write_text("this is the wrong one")
    is_ours = documented_check()

    async def behave(came: Came) -> web.StreamResponse | None:
        right = is_ours(came.headers, came.body, b"and this is the right one")
        tampered = is_ours(came.headers, came.body + b" ", b"and this is the right one")
        assert not tampered
        return None if right else web.Response(status=401, text="wrong signature")

    async with broker_in(tmp_path) as server, Webhook(behave) as target:
        await fill(server, messages_of(those, 10))
        async with forward(tmp_path, target.url, "--secret-file", secret) as running:
            await until(lambda: len(target.came) > 20)
            assert target.kept == {}
            secret.write_text("and this is the right one\n")
            await until(lambda: len(target.items) == 300)
            await until(lambda: "forward_secret_changed" in "\n".join(running.lines))
            assert "the right one" not in "\n".join(running.lines)
        listed = await here("dlq", "list", "--forward", "x", "--json", "--state-dir", tmp_path)
        letters = [json.loads(line) for line in listed.stdout.splitlines()]
        assert {each["code"] for each in letters} == {"http_401"}
        assert len(letters) == 100
        others = [tuple(each["reading"].values()) for each in letters]
        assert sorted([*target.items, *others]) == sorted(items_of(those))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--to", "https://x.example/"), "a forwarder reads the stream of a broker, and here is"),
        (("--to", "http://x.example/"), "would get the readings without TLS"),
        (("--to", "https://x.example/", "--name", "a b"), "'a b' is not a name of 1 to 32"),
        (("--to", "https://x.example/", "--name", "../x"), "is not a name of 1 to 32"),
        ((), "one of the arguments --to --to-file is required"),
        (("--to-file", "/nowhere"), "/nowhere cannot be read: No such file"),
        (("--to", "https://x.example/", "--send-s-max", "0"), "--send-s-max"),
        (("--to", "https://x.example/", "--in-flight", "many"), "--in-flight"),
    ],
)
async def test_wrong_use_is_one_sentence(
    words: tuple[str, ...], said: str, tmp_path: Path, here: Here
) -> None:
    """With exit code 2; also where only `serve` has run."""
    done = await here("forward", "--name", "x", *words, "--state-dir", tmp_path)
    assert done.code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


async def test_dead_letters_of_a_forwarder_are_not_replayed_into_the_table(
    tmp_path: Path, here: Here
) -> None:
    """They are there already, or were refused; the command says what to do instead."""
    words = ("--forward", "x", "--state-dir", tmp_path)
    done = await here("dlq", "replay", "--dry-run", *words)
    assert done.code == 2
    assert "post what" in done.stderr
    done = await here("dlq", "stats", *words)
    assert done.code == 2
    assert "no `ingest forward` of this name has run here" in done.stderr
