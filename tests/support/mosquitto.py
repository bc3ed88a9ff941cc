"""A real Mosquitto on a port of the loopback, a client that publishes, and `ingest mqtt`."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.deployment import program
from tests.support.tcp_ports import free_port
from tests.system.service import Service

PERSISTENT = "persistence true\nautosave_interval 1800\nmax_queued_messages 0\n"
STOP_S_MAX = 20.0


class Mosquitto:
    """`async with Mosquitto(folder) as broker`. `more` are lines of its configuration."""

    def __init__(
        self,
        folder: Path,
        more: str = "max_queued_messages 0\n",
        *,
        access: str = "",
        tls: str = "",
    ) -> None:
        self.port = free_port()
        self._folder = folder
        self._access = access or "allow_anonymous true\n"
        self._text = f"listener {self.port} 127.0.0.1\n{tls}{self._access}{more}"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"mqtt://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.end(signal.SIGTERM)

    async def start(self) -> None:
        """Start it, again on the same port and with the same data."""
        self._folder.mkdir(exist_ok=True)
        self._folder.chmod(0o777)  # as root it changes to a user of its own
        config = self._folder / "mosquitto.conf"
        config.write_text(f"{self._text}persistence_location {self._folder}/\nuser root\n")
        mosquitto = program("mosquitto", "mosquitto")
        log = (self._folder / "log").open("ab")
        with log:
            self._process = await asyncio.create_subprocess_exec(
                mosquitto, "-c", config, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        async with asyncio.timeout(STOP_S_MAX):
            while not await self._listens():
                assert self._process.returncode is None, (self._folder / "log").read_text()
                await asyncio.sleep(0.01)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None, "start it first"
        self._process.send_signal(number)

    async def wait_logged(self, text: str) -> None:
        """Wait until its log has a text."""
        async with asyncio.timeout(STOP_S_MAX):
            while text not in (self._folder / "log").read_text():  # noqa: ASYNC110  a file
                await asyncio.sleep(0.02)

    async def end(self, number: int) -> None:
        """Send a signal, and wait for the end. Repeatable."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)
            async with asyncio.timeout(STOP_S_MAX):
                await self._process.wait()


def item(number: int, device: str = "d") -> bytes:
    """Return an item with a time of its own."""
    return b'{"device_id":"%b","metric":"m","value":%d,"ts":%d}' % (
        device.encode(),
        number,
        1_790_000_000_000_000 + number,
    )


@asynccontextmanager
async def publisher(
    port: int, name: str = "publisher", *, password: str = "", ca_file: str = ""
) -> AsyncIterator[Client]:
    """Yield a client that connects again by itself, and then sends what was not acknowledged.

    With a password it is the user `me`; with a `ca_file` it speaks TLS.
    """
    client = Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
    client.max_inflight_messages_set(500)
    client.reconnect_delay_set(min_delay=1, max_delay=1)
    if password:
        client.username_pw_set("me", password)
    if ca_file:
        client.tls_set(ca_file)
    client.connect("localhost" if ca_file else "127.0.0.1", port)
    client.loop_start()
    try:
        yield client
    finally:
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)


async def publish(
    client: Client, messages: Iterable[bytes], topic: str = "sensors/a", *, qos: int = 1
) -> None:
    """Wait for the connection, and return once the broker has acknowledged all messages."""
    async with asyncio.timeout(60):
        while not client.is_connected():  # noqa: ASYNC110  a thread does it
            await asyncio.sleep(0.01)
    sent = [client.publish(topic, each, qos=qos) for each in messages]
    async with asyncio.timeout(60):
        while not all(each.is_published() for each in sent):  # noqa: ASYNC110  a thread does it
            await asyncio.sleep(0.01)


class MqttProcess(Service):
    """One `ingest mqtt`. Flags are given as settings: `topic="a/#"` is `--topic a/#`."""

    command = "mqtt"
    data_url_in = re.compile(r"for (http\S+);")
    admin_url_in = re.compile(r"metrics: (http://\S+)")

    def __init__(self, state_dir: Path, **settings: Any) -> None:
        super().__init__(state_dir, **settings)
        del self._settings["listen"]  # it takes no posts, and refuses the flag

    async def sample(self, name: str, **labels: str) -> float:
        """Return one sample of /metrics."""
        shown = ",".join(f'{key}="{value}"' for key, value in {"mqtt": "default", **labels}.items())
        return (await self.metrics()).get(f"{name}{{{shown}}}", 0.0)

    async def wait_receiving(self) -> None:
        """Wait until it is subscribed."""
        await self.wait_state("receiving")
