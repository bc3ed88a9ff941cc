"""A port that stays open: `serve` with a socket that is given to it, as systemd does."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest

from ingest.http.listener import BACKLOG
from tests.support.certificates import make_certificate, trusting
from tests.system.service import Service
from tests.system.test_tls import Secret

# Does what systemd does between its fork and the start of the program.
GIVEN = """
import os, runpy
os.dup2({fd}, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="it.socket")
runpy.run_module("ingest", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("with_tls", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_restarts_refuse_and_reset_nobody(
    open_tmp_path: Path, at_hand: dict[str, Any], with_tls: bool
) -> None:
    """100 posts a second, each on a new connection, and kept ones: all are answered and stored.

    Who connects after a kill -9 waits for the next process, which has all that was acknowledged.
    """
    context = None
    if with_tls:
        cert_file, key_file = make_certificate(open_tmp_path)
        at_hand |= {"tls_cert_file": cert_file, "tls_key_file": key_file}
        context = trusting(cert_file)
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listening:
        program = ("-c", GIVEN.format(fd=listening.fileno()))
        service = Service(open_tmp_path / "state", program=program, **at_hand)
        service.pass_fds = (listening.fileno(),)
        async with service:
            await service.wait_state("accepting")
            devices = Secret("{}:{}".format(*listening.getsockname()), context)
            async with devices.posting(100):
                for _ in range(3 if with_tls else 2):
                    assert "lost=0" in (await service.stop())[1]
                    await service.start()
            await service.kill()
            await asyncio.gather(devices.one(), service.start())
            assert devices.faults == []
            assert devices.acknowledged == devices.posted > 50
            await service.wait_rows(devices.posted)
