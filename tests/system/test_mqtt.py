"""`ingest mqtt` as a process: kills of all three, shared work, and the page that describes it."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.documents import DOCUMENTS, fences
from tests.support.mosquitto import (
    PERSISTENT,
    Mosquitto,
    MqttProcess,
    item,
    publish,
    publisher,
)
from tests.support.tcp_ports import free_port
from tests.system.service import REPOSITORY, Service, environment, run_command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
PART = 1_000


def process(state: Path, broker: Mosquitto, service: Service, **more: Any) -> MqttProcess:
    """Return an `ingest mqtt` that is not started."""
    flags = {"topic": "sensors/#", "send_retry_s_max": 0.5, **more}
    return MqttProcess(state, mqtt_url=broker.url, url=service.url, **flags)


async def stored(service: Service, count: int) -> None:
    """Wait until so many readings are in the table; check that they are 0, 1, 2, .."""
    async with asyncio.timeout(60):
        while True:
            found = await service.query("select count(*) from readings")
            if found[0][0] >= count:
                break
            await asyncio.sleep(0.1)
    rows = await service.query("select value from readings order by value")
    assert [int(each[0]) for each in rows] == list(range(count))


async def test_each_message_is_stored_once_through_kills_of_all_three(open_tmp_path: Path) -> None:
    """kill -9 of `ingest mqtt`, of the service, and of Mosquitto, each in the middle of the work.

    Mosquitto has written its messages before it is killed: else they are lost with it.
    """
    tmp_path = open_tmp_path
    async with (
        Mosquitto(tmp_path / "broker", PERSISTENT) as broker,
        publisher(broker.port) as client,
        Service(tmp_path / "service", listen=f"127.0.0.1:{free_port()}") as service,
        process(tmp_path / "state", broker, service) as ours,
    ):
        await ours.wait_receiving()

        publishing = asyncio.create_task(publish(client, map(item, range(PART))))
        await asyncio.sleep(0.1)
        await ours.kill()
        await publishing
        await ours.start()
        await stored(service, PART)

        publishing = asyncio.create_task(publish(client, map(item, range(PART, 2 * PART))))
        await asyncio.sleep(0.1)
        await service.kill()
        await publishing
        await publish(client, map(item, range(2 * PART, 3 * PART)))
        await ours.wait_state("service_away")
        await publish(client, [b"garbage", b'{"device_id":"d","metric":"m","value":"x"}'])
        broker.signal(signal.SIGUSR1)  # write the messages
        await broker.wait_logged("Saving in-memory database")
        await asyncio.sleep(0.3)
        await broker.end(signal.SIGKILL)
        await ours.wait_state("broker_away")
        await broker.start()
        await ours.wait_state("service_away")
        await service.start()
        await ours.wait_state("receiving")
        await publish(client, map(item, range(3 * PART, 4 * PART)))
        await stored(service, 4 * PART)
        async with asyncio.timeout(20):
            while await ours.sample("ingest_mqtt_held_messages"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        code, output = await ours.stop()
        assert code == 0, output
        assert "left_to_broker=0" in output
        bridge, kept = [
            (await run_command("ingest", "dlq", "list", *words)).stdout
            for words in (
                ("--mqtt", "default", "--state-dir", tmp_path / "state"),
                ("--state-dir", tmp_path / "service"),
            )
        ]
        assert "garbage" in bridge
        # The service keeps an invalid item of a post with good ones, and refuses one of its own.
        assert "wrong_type" in kept + bridge or "all_invalid" in bridge


async def test_messages_of_a_source_are_stored_once_through_a_kill(open_tmp_path: Path) -> None:
    """Of many topics, and of one; each message has a time of its own."""
    tmp_path = open_tmp_path
    file = tmp_path / "sources.toml"
    file.write_text(
        '[[source]]\nname = "house"\ndevice = "$topic.2"\nmetric = "=m"\n'
        'values = "."\nvalue = "v"\ntime = "t"\n'
    )
    async with (
        Mosquitto(tmp_path / "broker") as broker,
        publisher(broker.port) as client,
        Service(tmp_path / "service", sources_file=file) as service,
        process(tmp_path / "state", broker, service, source="house") as ours,
    ):
        await ours.wait_receiving()
        payloads = [b'{"v":%d,"t":%d}' % (at, 1_790_000_000 + at) for at in range(2 * PART)]
        publishing = asyncio.create_task(publish(client, payloads[:PART], "sensors/a/x"))
        await asyncio.sleep(0.1)
        await ours.kill()
        await publishing
        await ours.start()
        for at, each in enumerate(payloads[PART:]):
            client.publish(f"sensors/d{at % 300}/x", each, qos=1)
        await publish(client, [b"ON"], "sensors/a/x")
        await stored(service, 2 * PART)
        found = await service.query("select count(distinct device_id) from readings")
        assert found[0][0] == 301
        assert await ours.sample("ingest_mqtt_posts_total", status="200") > 300
        code, output = await ours.stop()
        assert code == 0, output
        assert "left_to_broker=0" in output


async def test_blocks_of_the_page_bring_a_message_into_the_table(open_tmp_path: Path) -> None:
    """docs/grow/mqtt.md, on other ports. The doctor then says what it cannot promise."""
    config, commands = (
        next(
            each.text
            for each in fences(DOCUMENTS["docs/grow/mqtt.md"])
            if each.language == language
        )
        for language in ("text", "sh")
    )
    port, data, ours = (free_port() for _ in range(3))
    folder = open_tmp_path / "work"
    folder.mkdir()
    folder.chmod(0o777)
    config = config.replace("1883", str(port)).replace("/var/lib/mosquitto", str(folder))
    (folder / "mosquitto.conf").write_text(config + "user root\n")
    state = open_tmp_path / "service"
    async with Service(state, listen=f"127.0.0.1:{data}"):
        env = {
            **environment(),
            "INGEST_STATE_DIR": str(state),
            "INGEST_ADMIN_LISTEN": f"127.0.0.1:{ours}",
        }
        script = (
            f'ingest() {{ "{sys.executable}" -P -m ingest "$@"; }}\n'
            'PATH=$PATH:/usr/sbin\ntrap "kill 0" EXIT\n'
            + commands.replace("1883", str(port))
            .replace("8083", str(ours))
            .replace("sleep 1", "sleep 4")
            .replace("'sensors/#'", f"'sensors/#' --url {_url(data)}")
        )
        done = await asyncio.create_subprocess_exec(
            *("bash", "-c", script),
            cwd=folder,
            env={**env, "PYTHONPATH": str(REPOSITORY)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        output = (await done.communicate())[0].decode()
        assert re.search(r"boiler-7 *\| temperature *\| *21.5", output), output
        found = await run_command("ingest", "doctor", "--state-dir", state)
        assert re.search("ok +mqtt default +what the MQTT broker drops", found.stdout)


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"
