"""A port that stays open: `serve` with a socket that is given to it, as systemd does."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.http.listener import BACKLOG
from tests.support.certificates import make_certificate, trusting
from tests.support.receiver import GOOD, Client, head, post
from tests.system.service import Service
from tests.system.test_tls import Secret

# Does what systemd does between its fork and the start of the program.
GIVEN = """
import os, runpy
os.dup2({fd}, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="it.socket")
runpy.run_module("ingest", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """Give the socket of the process manager, which nobody else closes."""
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as opened:
        yield opened


def given(listening: socket.socket, state: Path, **settings: Any) -> Service:
    """Return a service that gets the socket."""
    fd = listening.fileno()
    service = Service(state, program=("-c", GIVEN.format(fd=fd)), **settings)
    service.pass_fds = (fd,)
    return service


def address_of(listening: socket.socket) -> str:
    """Return its HOST:PORT."""
    return "{}:{}".format(*listening.getsockname())


@pytest.mark.parametrize("with_tls", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_restarts_refuse_and_reset_nobody(
    listening: socket.socket, open_tmp_path: Path, at_hand: dict[str, Any], with_tls: bool
) -> None:
    """100 posts a second, each on a new connection, and kept ones: all are answered and stored."""
    context = None
    if with_tls:
        cert_file, key_file = make_certificate(open_tmp_path)
        at_hand |= {"tls_cert_file": cert_file, "tls_key_file": key_file}
        context = trusting(cert_file)
    async with given(listening, open_tmp_path / "state", **at_hand) as service:
        await service.wait_state("accepting")
        assert service.url.endswith(address_of(listening))
        devices = Secret(service.url, context)
        async with devices.posting(100):
            for _ in range(3 if with_tls else 2):
                code, output = await service.stop()
                assert code == 0, output
                assert "lost=0" in output
                await service.start()
        assert devices.faults == []
        assert devices.acknowledged == devices.posted > 50
        await service.wait_rows(devices.posted)


async def test_killed_service_leaves_the_port_open(
    listening: socket.socket, open_tmp_path: Path, at_hand: dict[str, Any]
) -> None:
    """Who connects meanwhile waits for the next process, which has all that was acknowledged."""
    address = address_of(listening)
    async with given(listening, open_tmp_path / "state", **at_hand) as service:
        await service.wait_state("accepting")
        before = await Client.connect(address)
        await before.send(post(GOOD))
        assert (await before.reply()).status == 202
        await service.kill()
        waiting = await Client.connect(address)
        await waiting.send(post(GOOD.replace(b"175", b"176")))
        await service.start()
        assert (await waiting.reply(20)).status == 202
        await service.wait_rows(2)
        for each in (before, waiting):
            await each.close()


async def test_what_has_begun_is_answered_and_the_next_answer_ends_a_connection(
    listening: socket.socket, open_tmp_path: Path, at_hand: dict[str, Any]
) -> None:
    """A post whose rest comes after SIGTERM; a head that comes then; one that connects then."""
    address = address_of(listening)
    async with given(listening, open_tmp_path / "state", **at_hand) as service:
        await service.wait_state("accepting")
        whole = post(GOOD)
        half, silent = await Client.connect(address), await Client.connect(address)
        for each in (half, silent):
            await each.send(head("GET", "/livez"))
            assert (await each.reply()).status == 200
        await half.send(whole[:-5])
        os.kill(service.pid, signal.SIGTERM)
        late = await Client.connect(address)
        await late.send(whole)
        await silent.send(whole)
        await half.send(whole[-5:])
        for each in (silent, half):
            reply = await each.reply()
            assert (reply.status, reply.headers.get("connection")) == (202, "close")
        code, output = await service.ended()
        assert code == 0, output
        await service.start()
        assert (await late.reply(20)).status == 202
        for each in (half, silent, late):
            await each.close()
