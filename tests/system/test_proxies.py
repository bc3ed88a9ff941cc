"""The examples of deploy/proxies with the real programs: nginx and Caddy, as Debian has them.

In each file only the paths and the ports are replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ingest.access.token_lines import TokenEntry, certificate_key, entry_line
from tests.support.certificates import make_certificate, make_signed, trusting
from tests.support.documents import REPOSITORY
from tests.support.receiver import GOOD, Client, head, in_force, running_receiver
from tests.support.receiver import post as post_of
from tests.support.tcp_ports import free_port

EXAMPLES = REPOSITORY / "deploy/proxies"
AROUND_NGINX = """daemon off; master_process off; pid {folder}/pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    include {folder}/example.conf;
}}
"""
COMMANDS = {
    "nginx.conf": ("nginx", "-p", "{folder}", "-e", "stderr", "-c", "{folder}/whole.conf"),
    "Caddyfile": ("caddy", "run", "--adapter", "caddyfile", "--config", "{folder}/example.conf"),
}
DEVICE = "127.0.0.7"
HOST = b"Host: localhost\r\n"  # Caddy wants the name for which the client asked in TLS
OWN_JSON = b'{"id":"esp-1","temp":21.4,"hum":40}'
OWN_READINGS = [("esp-1", "temp", 21.4), ("esp-1", "hum", 40.0)]
NOWHERE = ("/v1/in/nobody", 404)  # the service says so

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


def post(body: bytes, **headers: str) -> bytes:
    """Return a post."""
    return post_of(body, headers=headers).replace(b"Host: door\r\n", HOST)


@asynccontextmanager
async def proxy(example: str, folder: Path, upstream: str) -> AsyncIterator[int]:
    """Run a proxy with an example in front of an address; give its port."""
    program = COMMANDS[example][0]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed (apt-get install {program})")
    port = free_port()
    text = (EXAMPLES / example).read_text()
    for old, new in (
        ("/etc/iot-ingest", str(folder)),
        ("127.0.0.1:8080", upstream),
        ("8443", str(port)),
    ):
        assert old in text
        text = text.replace(old, new)
    (folder / "example.conf").write_text(text)
    (folder / "whole.conf").write_text(AROUND_NGINX.format(folder=folder))
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(
            *(each.format(folder=folder) for each in COMMANDS[example]),
            env={"PATH": "/usr/sbin:/usr/bin", "HOME": str(folder)},
            stderr=log,
        )
    try:
        async with asyncio.timeout(20):
            while not await _listens(port):
                assert process.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.05)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def _connect(port: int, context: ssl.SSLContext) -> Client:
    return Client(
        *await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, local_addr=(DEVICE, 0), server_hostname="localhost"
        )
    )


@pytest.mark.parametrize("example", sorted(COMMANDS))
async def test_certificate_says_who_posts(tmp_path: Path, example: str) -> None:
    """The name in it, and not what the device writes into the header. One without an entry: 401.

    Two devices come over one connection of the proxy.
    """
    server_cert, _ = make_certificate(tmp_path, "server")
    make_certificate(tmp_path, "devices-ca")
    known = ("device-1", "device-2")
    tokens = in_force(
        *(entry_line(TokenEntry(f"n-{each}", certificate_key(each))) for each in known)
    )
    async with (
        running_receiver(
            tokens,
            trusted_proxies="127.0.0.1",
            client_certificate_header="X-Client-Certificate",
        ) as receiver,
        proxy(example, tmp_path, receiver.address) as port,
    ):
        for _ in range(2):
            for name in (*known, "device-3"):
                device = trusting(server_cert)
                device.load_cert_chain(*make_signed(tmp_path, name, by="devices-ca"))
                client = await _connect(port, device)
                written: tuple[dict[str, str], ...] = ({}, {"X-Client-Certificate": "device-2"})
                for headers in written:
                    await client.send(post(GOOD, **headers))
                    assert (await client.reply()).status == (202 if name in known else 401)
                await client.close()
        senders = [each.sender for each in receiver.inlet.blocks]
        assert senders == ["token n-device-1"] * 2 + ["token n-device-2"] * 2 + senders[:4]


@pytest.mark.parametrize("example", sorted(COMMANDS))
async def test_example_lets_in_devices_with_a_certificate(tmp_path: Path, example: str) -> None:
    """Their address counts at the service. Without a certificate nobody gets to it."""
    server_cert, _ = make_certificate(tmp_path, "server")
    make_certificate(tmp_path, "devices-ca")
    device_cert, device_key = make_signed(tmp_path, "device-1", by="devices-ca")
    device = trusting(server_cert)
    device.load_cert_chain(device_cert, device_key)
    sources = tmp_path / "sources.toml"
    sources.write_text('[[source]]\nname = "esp"\ndevice = "id"\n')
    async with (
        running_receiver(
            trusted_proxies="127.0.0.1", access="open", sources_file=str(sources)
        ) as receiver,
        proxy(example, tmp_path, receiver.address) as port,
    ):
        client = await _connect(port, device)
        for _ in range(2):
            await client.send(post(GOOD))
            assert (await client.reply()).status == 202
        await client.send(post(b"no json", **{"X-Forwarded-For": "198.51.100.1"}))
        assert (await client.reply()).status == 400
        assert [each["peer"] for each in receiver.refused_posts.listed()] == [DEVICE]
        lines = b"room,device=a t=21.5\n" * 60_000  # more than body_bytes_max
        for path in ("/write", "/influx/api/v2/write"):
            size = str(len(lines))
            request = head("POST", path, {"Content-Length": size}).replace(b"Host: door\r\n", HOST)
            await client.send(request + lines)
            assert (await client.reply(20.0)).status == 204
        for path, status in (("/v1/in/esp", 200), ("/v1/in/esp/uplink?x=1", 200), NOWHERE):
            typed = {"Content-Length": str(len(OWN_JSON)), "Content-Type": "text/plain"}
            request = head("POST", path, typed).replace(b"Host: door\r\n", HOST)
            await client.send(request + OWN_JSON)
            assert (await client.reply()).status == status, path
        for path in ("/metrics", "/v1/in", "/v1/in/", "/v1/in/../../metrics", "/v1/in/%2e%2e/x"):
            await client.send(head("GET", path).replace(b"Host: door\r\n", HOST))
            assert (await client.reply()).status == 404, path
        assert [each[1:] for each in receiver.inlet.readings][-4:] == OWN_READINGS * 2
        await client.close()
        taken = len(receiver.inlet.blocks)
        status = 0
        with contextlib.suppress(ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
            stranger = await _connect(port, trusting(server_cert))
            try:
                await stranger.send(post(GOOD))
                status = (await stranger.reply()).status
            finally:
                await stranger.close()
        assert status in (0, 400)
        assert len(receiver.inlet.blocks) == taken


def test_examples_are_all_tested() -> None:
    """Each file has a command here."""
    assert {each.name for each in EXAMPLES.iterdir()} == set(COMMANDS)


def test_caddy_accepts_its_file_as_it_is_formatted() -> None:
    """`caddy fmt` would change nothing."""
    if shutil.which("caddy") is None:
        pytest.skip("caddy is not installed (apt-get install caddy)")
    done = subprocess.run(
        ["caddy", "fmt", EXAMPLES / "Caddyfile"], capture_output=True, text=True, check=False
    )
    assert done.stdout == (EXAMPLES / "Caddyfile").read_text()
