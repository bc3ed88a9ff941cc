"""`ingest mqtt` between a real Mosquitto and a service that answers as it is told."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ingest.app.process import Process
from ingest.config.settings import Settings
from ingest.http_client.client import target_of
from ingest.model.errors import ConfigError
from ingest.mqtt.options import MqttOptions, MqttTls, MqttWanted, mqtt_address
from ingest.mqtt.service import MqttService, tls_context
from ingest.system.service_manager import Notifier
from ingest.system.state_folder import StateFolder
from tests.support.brokers import until
from tests.support.certificates import make_certificate
from tests.support.deployment import program
from tests.support.documents import DOCUMENTS, fences
from tests.support.mosquitto import Mosquitto, item, publish, publisher
from tests.support.receiver import running_receiver
from tests.support.tcp_ports import free_port

Answer = Callable[[list[Any]], tuple[int, str]]


def take(_items: list[Any]) -> tuple[int, str]:
    """Take each post."""
    return 202, ""


class FakeService:
    """Keeps the items of posts that it takes. `answer(items)` returns status and code."""

    def __init__(self, answer: Answer = take) -> None:
        self.answer = answer
        self.kept: list[Any] = []
        self.posts: list[int] = []  # items of each post that came
        self.token = ""
        self.port = free_port()

    async def _post(self, request: web.Request) -> web.Response:
        items = json.loads(await request.read())
        self.token = request.headers.get("Authorization", "")
        self.posts.append(len(items))
        status, code = self.answer(items)
        if status < 300:
            self.kept += items
        return web.json_response({"code": code}, status=status)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeService]:
        """Listen until the end of the block."""
        app = web.Application(client_max_size=64 * 1024**2)
        app.router.add_post("/v1/readings", self._post)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start()
        try:
            yield self
        finally:
            await runner.cleanup()


@asynccontextmanager
async def bridge(
    folder: Path, broker: str, port: int, *, wait: bool = True, **more: Any
) -> AsyncIterator[MqttService]:
    """Run `ingest mqtt` in this process."""
    options = more.pop("options", {})
    wanted = MqttWanted(
        name="x",
        address=mqtt_address(broker),
        client_id=more.pop("client_id", "iot-ingest-x"),
        topics=more.pop("topics", ("sensors/#",)),
        target=target_of(f"http://127.0.0.1:{port}{more.pop('path', '/v1/readings')}"),
        options=MqttOptions(**{"send_retry_s_max": 0.2, "send_linger_s": 0.01, **options}),
        **more,
    )
    process = Process("mqtt", lambda _line: None, Notifier())
    service = MqttService(Settings(), wanted, StateFolder.open(folder), process)
    try:
        await service.start("127.0.0.1:0")
        if wait:
            await until(lambda: state(service) != "broker_away")
        yield service
        process.stopping.set()
        await service.stop()
    finally:
        process.stopping.set()
        await service.close()


def state(service: MqttService) -> str:
    """Return its state, as /readyz has it."""
    return str(json.loads(service.readyz()[1])["state"])


def numbers(service: FakeService) -> list[int]:
    """Return the values of what was kept."""
    return sorted(each["value"] for each in service.kept if "value" in each)


async def test_message_is_acknowledged_after_the_answer_and_not_before(tmp_path: Path) -> None:
    """503, 401 and 413 acknowledge nothing, and the broker has the messages at the next start.

    A message without JSON, one that the service refuses, and an empty one hold nobody back.
    """

    def refuse(items: list[Any]) -> tuple[int, str]:
        if any("bad" in each for each in items):
            return (400, "not_json")
        return (413, "item_too_large") if any("huge" in each for each in items) else (202, "")

    answers: list[Answer] = [lambda _: (503, "buffer_full"), lambda _: (401, "unauthorized")]
    async with (
        Mosquitto(tmp_path / "broker") as broker,
        publisher(broker.port) as client,
        FakeService().running() as service,
    ):
        for answer in answers:
            service.answer = answer
            async with bridge(tmp_path / "state", broker.url, service.port) as ours:
                if answer is answers[0]:
                    await publish(client, map(item, range(100)))
                    await publish(client, [b"garbage", b"", b"[]", b'{"bad":1}', b'{"huge":1}'])
                await until(lambda: state(ours) == "service_away")
                assert ours.tally.taken == 0
        service.answer, service.posts = refuse, []
        async with bridge(tmp_path / "state", broker.url, service.port) as ours:
            await until(lambda: len(service.kept) == 100)
            await publish(client, map(item, range(100, 200)))
            await until(lambda: len(service.kept) == 200)
            await until(lambda: json.loads(ours.readyz()[1]).get("set_aside") == "1")
            await until(lambda: ours.bridge.held_messages == 1)  # the answer has come, too
            # The garbage has come again: acknowledgements keep the order of the messages.
            assert ours.tally.dead_lettered == 2
            assert (ours.tally.dead_lettered, ours.bridge.held_messages) == (2, 1)
        assert ours.tally.again >= 100
        service.answer = take
        async with bridge(tmp_path / "state", broker.url, service.port) as ours:
            await until(lambda: len(service.kept) == 201)
            assert ours.tally.received == [0, 1], "all others are acknowledged"
    assert numbers(service) == list(range(200))


# After a handshake that fails, the library leaves its socket to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket")
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket")
async def test_tls_password_token_and_what_the_broker_refuses(tmp_path: Path) -> None:
    """The secrets are read at each try. What is wrong stands on /readyz, and is tried again."""
    cert_file, key_file = make_certificate(tmp_path)
    for file in (cert_file, key_file):
        file.chmod(0o644)
    passwords = tmp_path / "passwords"
    passwd = program("mosquitto_passwd", "mosquitto")
    await _run(passwd, "-b", "-c", str(passwords), "me", "right")
    passwords.chmod(0o644)
    acl = tmp_path / "acl"
    acl.write_text("user me\ntopic readwrite sensors/#\n")
    access = f"allow_anonymous false\npassword_file {passwords}\nacl_file {acl}\n"
    tls = f"certfile {cert_file}\nkeyfile {key_file}\n"
    password = "wrong"
    async with (
        Mosquitto(tmp_path / "broker", access=access, tls=tls) as broker,
        FakeService().running() as service,
        bridge(
            tmp_path / "state",
            f"mqtts://me@localhost:{broker.port}",
            service.port,
            wait=False,
            tls=MqttTls(ca_file=str(cert_file)),
            password=lambda: password,
            token=lambda: "secret",
        ) as ours,
    ):
        await until(lambda: "refuses us: Not authorized" in ours.state()[1])
        password = "right"
        await until(lambda: state(ours) == "receiving")
        async with publisher(broker.port, password="right", ca_file=str(cert_file)) as client:
            await publish(client, [item(1)], "sensors/x")
        await until(lambda: numbers(service) == [1])
        async with bridge(
            tmp_path / "other",
            f"mqtts://me@localhost:{broker.port}",
            service.port,
            wait=False,
            client_id="z",
            password=lambda: "right",
        ) as untrusting:
            await until(lambda: "certificate verify failed" in untrusting.state()[1])
    assert service.token == "Bearer secret"
    with pytest.raises(ConfigError, match="--mqtt-ca"):
        tls_context(MqttTls(ca_file=str(key_file)))
    with pytest.raises(ConfigError, match="--mqtt-cert"):
        tls_context(MqttTls(cert_file=str(passwords)))
    assert isinstance(tls_context(MqttTls()), ssl.SSLContext)


async def test_topics_that_are_wanted_no_more_and_two_with_one_name(tmp_path: Path) -> None:
    """The broker keeps the filters of a session. Two processes with one client id are told.

    By MQTT 3.1.1 no broker says it, and the Mosquitto of Debian 12 (2.0.11) never does.
    """
    async with (
        Mosquitto(tmp_path / "broker") as broker,
        publisher(broker.port) as client,
        FakeService().running() as service,
    ):
        async with bridge(tmp_path / "a", broker.url, service.port, topics=("old/#", "both/#")):
            pass
        async with bridge(
            tmp_path / "a", broker.url, service.port, topics=("both/#", "new/#"), version=3
        ) as ours:
            await publish(client, [item(1)], "old/a")
            await publish(client, [item(2)], "both/a")
            await publish(client, [item(3)], "new/a")
            await publish(client, [item(4)], "new/a", qos=0)
            await until(lambda: len(service.kept) == 3)
            assert numbers(service) == [2, 3, 4]
            assert ours.tally.received == [1, 2]
        for version in (5, 3):
            async with (
                bridge(tmp_path / "a", broker.url, service.port, version=version) as first,
                bridge(tmp_path / "b", broker.url, service.port, version=version),
            ):
                told = "client id iot-ingest-x (--client-id)"
                await until(lambda: told in first.state()[1], 30)  # noqa: B023  it ends here


async def test_filter_of_which_the_source_ignores_all_is_told(tmp_path: Path) -> None:
    """Until a message of it is read. Other filters are not named."""
    file = tmp_path / "sources.toml"
    told = 'name = "s"\ndevice = "$topic.2"\nvalues = "."\nwhen = {kind = "up"}\n'
    file.write_text(f"[[source]]\n{told}")
    async with (
        Mosquitto(tmp_path / "broker") as broker,
        publisher(broker.port) as client,
        running_receiver(sources_file=str(file)) as service,
        bridge(
            tmp_path / "state",
            broker.url,
            int(service.address.rpartition(":")[2]),
            source="s",
            path="/v1/in/s",
            topics=("a/#", "b/+"),
        ) as ours,
    ):
        await publish(client, [b'{"kind":"up","v":1}'], "b/d")
        await publish(client, [b'{"kind":"down","v":1}'] * 19, "a/d")
        await until(lambda: ours.tally.taken == 20)
        assert "all_ignored" not in json.loads(ours.readyz()[1])
        await publish(client, [b'{"kind":"down","v":1}'], "a/other/x")
        await until(lambda: json.loads(ours.readyz()[1]).get("all_ignored") == "a/#")
        values = {metric.name: value for metric, value in ours.metrics()}
        assert values["mqtt_ignored_filters"] == 1
        await publish(client, [b'{"kind":"up","v":2}'], "a/d")
        await until(lambda: "all_ignored" not in json.loads(ours.readyz()[1]))


async def test_too_many_for_the_service_stay_with_the_broker(tmp_path: Path) -> None:
    """Memory has a bound: the receive window, and for a broker without one the socket."""
    count = 1_000
    async with (
        Mosquitto(
            tmp_path / "broker", "max_queued_messages 0\nmax_inflight_messages 0\n"
        ) as broker,
        publisher(broker.port) as client,
        FakeService(lambda _: (503, "buffer_full")).running() as service,
    ):
        for version in (5, 3):
            service.answer = lambda _: (503, "buffer_full")
            async with bridge(
                tmp_path / str(version),
                broker.url,
                service.port,
                version=version,
                client_id=str(version),
                options={"mqtt_receive_max": 100, "send_messages_max": 50},
            ) as ours:
                service.kept.clear()
                await publish(client, map(item, range(count)))
                await until(lambda: ours.bridge.held_messages >= 100)
                await asyncio.sleep(0.1)
                assert ours.bridge.held_messages <= (100 if version == 5 else 400)
                service.answer = take
                await until(lambda: len(service.kept) == count, 20)
                assert numbers(service) == list(range(count))
                assert max(service.posts) <= 50


async def test_what_the_broker_drops_is_not_ours_to_keep(tmp_path: Path) -> None:
    """Beyond max_queued_messages, with QoS 0, and at its restart without persistence."""
    async with (
        FakeService().running() as service,
        Mosquitto(tmp_path / "broker", "max_queued_messages 50\n") as broker,
    ):
        async with bridge(tmp_path / "state", broker.url, service.port):
            pass
        async with publisher(broker.port) as client:
            await publish(client, map(item, range(20)), qos=0)
            await publish(client, map(item, range(100, 300)))
        async with bridge(tmp_path / "state", broker.url, service.port) as ours:
            await until(lambda: len(service.kept) == 50)
            assert numbers(service) == list(range(100, 150))
            await broker.end(signal.SIGTERM)
            await until(lambda: state(ours) == "broker_away")
            await broker.start()
            await until(lambda: state(ours) == "receiving")
            assert ours.tally.sessions_lost == 1


async def test_bare_number_is_a_reading_of_the_device_in_its_topic(tmp_path: Path) -> None:
    """By the table of docs/grow/mqtt.md. A backlog of one device keeps a time for each message.

    A text that is no JSON, and a document without a number, hold nobody back.
    """
    file = tmp_path / "sources.toml"
    file.write_text(
        next(e.text for e in fences(DOCUMENTS["docs/grow/mqtt.md"]) if e.language == "toml")
    )
    async with (
        Mosquitto(tmp_path / "broker") as broker,
        publisher(broker.port) as client,
        running_receiver(sources_file=str(file)) as service,
        bridge(
            tmp_path / "state",
            broker.url,
            int(service.address.rpartition(":")[2]),
            source="house",
            path="/v1/in/house",
        ) as ours,
    ):
        service.admission.code = "starting"
        await publish(client, [b"21.5", b'{"v":22}', b"ON"], "sensors/greenhouse/temp")
        await publish(client, [b'{"state":"on"}'], "sensors/pump/state")
        await publish(client, [b"%d" % at for at in range(300)], "sensors/kü %/a/b")
        await until(lambda: state(ours) == "service_away")
        service.admission.code = None
        await until(lambda: len(service.inlet.readings) == 302)
        await until(lambda: ours.bridge.held_messages == 0)
        assert (ours.tally.taken, ours.tally.dead_lettered) == (303, 1)
        assert len({each.ts_us for each in service.inlet.readings}) == 302
        found = {each[1:] for each in service.inlet.readings}
        assert {("greenhouse", "temp", 21.5), ("greenhouse", "temp", 22.0)} < found
        assert found > {("kü %", "a", float(at)) for at in range(300)}
        (letter,) = service.dead_letters.letters
        assert letter.code == "no_value"
        assert json.loads(letter.context)["topic"] == "sensors/pump/state"
        assert len(service.inlet.blocks) < 10, "messages of one topic are one post"


async def _run(*words: str) -> None:
    process = await asyncio.create_subprocess_exec(*words)
    assert await process.wait() == 0
