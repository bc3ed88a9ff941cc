"""The supervisor of `ingest up` with small processes: replacement, failures, and its stop."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from structlog.testing import capture_logs

from ingest.model.errors import StartError
from ingest.roles.embedded_broker import running_broker
from ingest.roles.supervisor import children as children_module
from ingest.roles.supervisor import up as up_module
from ingest.roles.supervisor.child import holders
from ingest.roles.supervisor.children import Children, ChildTimes
from ingest.roles.supervisor.up import Servers
from ingest.system.state_folder import StateFolder, running_service
from tests.support.certificates import make_certificate
from tests.support.receiver import until
from tests.support.supervisors import TIMES, Devices, running_up
from tests.system.service import is_alive, wait_gone

QUICK_STOP: dict[str, Any] = {"drain_s_max": 0.5}  # of Settings that nobody checks


def logged(logs: Sequence[Mapping[str, Any]], event: str, field: str) -> list[Any]:
    """Return a field of all events of a kind."""
    return [each[field] for each in logs if each["event"] == event]


async def test_killed_and_frozen_processes_are_replaced(tmp_path: Path) -> None:
    """Others take their places; a frozen one is killed; nobody else is touched."""
    async with running_up(tmp_path, gateways=2) as up:
        before = up.pids
        assert sorted(before) == ["gateway-1", "gateway-2", "writer-1"]
        os.kill(before["gateway-1"], signal.SIGKILL)
        os.kill(before["writer-1"], signal.SIGSTOP)
        await up.replaced("gateway-1", before["gateway-1"])
        await up.replaced("writer-1", before["writer-1"])
        await wait_gone(before["writer-1"])
        assert up.pids["gateway-2"] == before["gateway-2"]
        devices = Devices(up.address)
        async with devices.posting():
            await until(lambda: len(devices.served) == 2)
        assert devices.faults == []
        assert set(devices.served) <= set(up.pids.values())
        assert await up.stop() == 0


async def test_connection_waits_in_the_socket_while_there_is_no_gateway(tmp_path: Path) -> None:
    """The only gateway is dead: clients connect all the same, and get their 202 later."""
    async with running_up(tmp_path) as up:
        old = up.pids["gateway-1"]
        os.kill(old, signal.SIGKILL)
        await wait_gone(old)
        devices = Devices(up.address)
        await asyncio.gather(*(devices.one() for _ in range(20)))
        assert devices.faults == []
        assert sum(devices.served.values()) == 20
        assert old not in devices.served


async def test_process_that_keeps_ending_is_started_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause doubles. When it gets ready again, all goes on."""
    async with running_up(tmp_path) as up:
        old = up.pids["writer-1"]
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setenv("TINY", "writer-1:exits")
            os.kill(old, signal.SIGKILL)
            await until(lambda: len(logged(logs, "child_ended", "restart_in_s")) == 3, 20)
        assert logged(logs, "child_ended", "restart_in_s") == [0.1, 0.2, 0.4]
        assert (
            logged(logs, "child_not_ready", "why")
            == ["writer-1 did not start: it ended with exit code 7"] * 2
        )
        await up.replaced("writer-1", old)
        assert await up.stop() == 0


async def test_restart_that_fails_leaves_the_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade that does not start: the log says why; posts wait for the next try."""
    async with running_up(tmp_path) as up:
        before = up.pids
        children = up.supervisor._children
        assert children is not None
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setenv("TINY", "fails")
            assert not await children.restart(asyncio.Event())
        assert logged(logs, "child_not_ready", "why") == [
            "gateway-1 did not start: the moon is full"
        ]
        assert logged(logs, "restart_stopped", "instance") == ["gateway-1"]
        devices = Devices(up.address)
        await devices.one()
        assert devices.faults == []
        assert set(devices.served) == {up.pids["gateway-1"]}
        assert up.pids["writer-1"] == before["writer-1"]
        assert await children.restart(asyncio.Event())
        assert not set(before.values()) & set(up.pids.values())


async def test_restart_does_not_wait_long_for_a_frozen_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has said nothing for longer than a process may; it will not end by itself."""
    monkeypatch.setattr(children_module, "TICK_S", 0.1)
    async with running_up(tmp_path) as up:
        old = up.pids["gateway-1"]
        children = up.supervisor._children
        assert children is not None
        os.kill(old, signal.SIGSTOP)
        with capture_logs() as logs:
            async with asyncio.timeout(TIMES.leave_s_max / 2):
                assert await children.restart(asyncio.Event())
        assert logged(logs, "child_killed", "pid") == [old]


async def test_supervisor_that_was_frozen_blames_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After its own pause it has heard nothing for long, and that is not its children's fault."""
    monkeypatch.setattr(children_module, "LATE_S", 0.2)
    monkeypatch.setattr(children_module, "TICK_S", 0.1)
    async with running_up(tmp_path) as up:
        before = up.pids
        with capture_logs() as logs:
            time.sleep(1.5 * TIMES.silent_s_max)  # noqa: ASYNC251  it blocks, as a frozen process
            await asyncio.sleep(0.3)
        assert logged(logs, "child_frozen", "pid") == []
        assert up.pids == before


async def test_freeze_of_all_processes_during_a_restart_kills_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was paused goes on where it was: the process still ends by itself."""
    monkeypatch.setattr(children_module, "LATE_S", 0.2)
    monkeypatch.setattr(children_module, "TICK_S", 0.1)
    async with running_up(tmp_path) as up:
        old = up.pids["gateway-1"]
        os.kill(old, signal.SIGSTOP)
        with capture_logs() as logs:
            restart = asyncio.create_task(up.supervisor._children.restart(asyncio.Event()))
            await asyncio.sleep(0.2)  # it has been told to step down
            time.sleep(2 * TIMES.silent_s_max)  # noqa: ASYNC251  it blocks, as a frozen process
            await asyncio.sleep(0.1)  # it goes on first
            os.kill(old, signal.SIGCONT)
            assert await restart
        assert logged(logs, "child_killed", "pid") == []


@pytest.mark.parametrize(
    ("tiny", "said"),
    [
        ("gateway-1:fails", "gateway-1 did not start: the moon is full"),
        ("writer-1:exits", "writer-1 did not start: it ended with exit code 7"),
        ("gateway-1:never_ready", "gateway-1 is not ready after 1 s"),
    ],
)
async def test_process_that_does_not_start_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: str, said: str
) -> None:
    """The sentence is the process's own, if it gave one; nothing is left running."""
    monkeypatch.setenv("TINY", tiny)
    times = TIMES._replace(ready_s_max=1) if "never" in tiny else TIMES
    with pytest.raises(StartError, match=said):
        async with running_up(tmp_path, times=times):
            pass
    assert running_broker(tmp_path / "broker") is None
    assert running_service(tmp_path) is None
    assert holders(tmp_path / "children.lock") == []


async def test_start_that_fails_late_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is slow to say no, and a gateway answers posts before: it gives its account."""
    made: list[Children] = []

    class Seen(Children):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            made.append(self)

    async def fail(_: object) -> None:
        def is_ready() -> bool:
            return all(each.child and each.child.ready.is_set() for each in made[0].of("gateway"))

        await until(is_ready, 20)
        raise StartError("no database")

    monkeypatch.setattr(up_module, "Children", Seen)
    monkeypatch.setattr(Servers, "start_database", fail)
    monkeypatch.setenv("TINY", "gateway-1:loses")
    with pytest.raises(StartError, match="no database"):
        async with running_up(tmp_path):
            pass
    assert (made[0].unclean, made[0].lost) == (0, 5)


@pytest.mark.parametrize("gateways", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
async def test_port_in_use_is_one_sentence(tmp_path: Path, gateways: int, shared: bool) -> None:
    """Also if the other one's socket could be shared: half of the posts would go there."""
    with socket.socket() as other:
        if shared:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        said = rf"cannot listen on {address} \(Address already in use\); .* --listen"
        with pytest.raises(StartError, match=said):
            async with running_up(tmp_path, listen=address, gateways=gateways):
                pass


async def test_stream_that_is_larger_than_the_disk_names_the_setting(tmp_path: Path) -> None:
    """Its default is 8 GiB, and a small board may have less."""
    with pytest.raises(StartError, match=r"stream_bytes_max is .* bytes: set less, or free space"):
        async with running_up(tmp_path, stream_bytes_max=1 << 50):
            pass


async def test_process_that_does_not_end_is_killed_at_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1: it gave no account."""
    monkeypatch.setenv("TINY", "gateway-1:never_ends")
    monkeypatch.setattr(up_module, "GRACE_S", 0.0)
    async with running_up(tmp_path, writer_processes=2, **QUICK_STOP) as up:
        pids = up.pids
        assert len(pids) == 3
        assert await up.stop() == 1
        assert up.lines[-1] == "drained: committed=0 dead_lettered=0 held=0 lost=0"
        assert not [each for each in pids.values() if is_alive(each)]


async def test_second_signal_ends_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that does not end is killed; it has nothing that was acknowledged."""
    monkeypatch.setattr(children_module, "HURRY_S", 0.1)
    monkeypatch.setenv("TINY", "never_ends")
    async with running_up(tmp_path) as up:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.3)
        assert not up.running.done()
        os.kill(os.getpid(), signal.SIGINT)
        async with asyncio.timeout(2):
            assert await up.running == 0
        assert running_service(tmp_path) is None


async def test_stop_while_it_starts_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal before the first process is ready ends it in order, with its last line."""
    monkeypatch.setenv("TINY", "never_ready")
    monkeypatch.setattr(up_module, "GRACE_S", 0.0)
    with pytest.raises(TimeoutError):
        await cut_short(tmp_path)
    assert running_broker(tmp_path / "broker") is None
    assert holders(tmp_path / "children.lock") == []


async def cut_short(folder: Path) -> None:
    """Stop an `ingest up` while it starts."""
    async with asyncio.timeout(0.7), running_up(folder, **QUICK_STOP):
        pass


async def test_commands_find_it_and_its_last_line_is_the_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It publishes what `serve` does; the admin port says who is there; a loss is exit code 3.

    What a killed process has stored counts too.
    """
    monkeypatch.setenv("TINY", "writer-1:loses")
    async with running_up(tmp_path) as up:
        info = running_service(tmp_path)
        assert info is not None
        assert (info.pid, info.listen) == (os.getpid(), up.address)
        assert StateFolder(tmp_path).broker.stat().st_mode & 0o777 == 0o700

        def ready() -> dict[str, object]:
            with urlopen(f"http://{info.admin_listen}/readyz", timeout=5) as answer:
                found: dict[str, object] = json.loads(answer.read())
                return found

        await until(lambda: up.supervisor.overview.in_words() == "accepting")
        found = await asyncio.to_thread(ready)
        assert found["state"] == "accepting"
        up.supervisor._children.tell("writer-1", {"do": "release_hold", "dead_letter": True})
        instances, killed = up.supervisor.overview.instances, up.pids["writer-1"]
        await until(lambda: sum(each.status.ledger.committed for each in instances) == 1000)
        os.kill(killed, signal.SIGKILL)
        await up.replaced("writer-1", killed)
        up.supervisor._children.tell("writer-1", {"do": "release_hold", "dead_letter": True})
        assert await up.stop() == 3
        assert up.lines[-1] == "drained: committed=2000 dead_lettered=0 held=0 lost=5"
        (line,) = [each for each in capfd.readouterr().out.splitlines() if "child_lost" in each]
        assert "writer-1" in line
        assert "5" in line


async def test_database_for_which_readings_wait_is_noted_before_it_is_reached(
    tmp_path: Path,
) -> None:
    """Gateways take posts at once; a start without the URL would write them elsewhere."""
    folder = StateFolder.open(tmp_path)
    folder.remember_database("a:5432/x")
    async with running_up(tmp_path, database_url="postgresql://u@b/x"):
        noted = folder.remembered_database()
    assert noted == "b:5432/x (not reached yet), after a:5432/x"


async def test_server_at_another_place_restarts_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker had to take another port: the processes get its new address."""
    monkeypatch.setattr(up_module, "WATCH_S", 0.05)
    async with running_up(tmp_path, times=ChildTimes(15, 10, 15)) as up:
        before = up.pids
        broker = up.supervisor._servers._broker
        assert broker is not None
        assert broker._endpoints is not None
        broker._endpoints = broker._endpoints._replace(port=broker._endpoints.port + 1)
        for instance, pid in before.items():
            await up.replaced(instance, pid)


@pytest.mark.parametrize("setting", ["sources_file", "tables_file", "tokens_file", "tls_cert_file"])
async def test_restart_ends_nobody_if_a_file_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """The next gateway would not start. The signal that comes after it was mended is obeyed."""
    monkeypatch.setattr(up_module, "WATCH_S", 0.05)
    file, more = tmp_path / "file", dict[str, Any]()
    file.touch(mode=0o600)
    if setting == "tls_cert_file":
        file, key_file = make_certificate(tmp_path)
        more = {"tls_key_file": str(key_file)}
    more[setting] = str(file)
    good = file.read_text()
    async with running_up(tmp_path / "state", **more) as up:
        before = up.pids
        with capture_logs() as logs:
            file.write_text("[[")
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: logged(logs, "restart_refused", "why"))
            assert str(file) in logged(logs, "restart_refused", "why")[0]
            assert up.pids == before
            file.write_text(good)
            os.kill(os.getpid(), signal.SIGHUP)
            for instance, pid in before.items():
                await up.replaced(instance, pid)


async def test_restart_that_must_be_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was not restarted looks for the server where it is not any more."""
    monkeypatch.setattr(up_module, "WATCH_S", 0.05)
    monkeypatch.setattr(up_module, "AGAIN_S", 0.05)
    tries = 0

    async def restart(*_: object) -> bool:
        nonlocal tries
        tries += 1
        return tries == 3

    monkeypatch.setattr(Children, "restart", restart)
    async with running_up(tmp_path, times=ChildTimes(15, 10, 15)) as up:
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: tries)
        await asyncio.sleep(0.2)
        assert tries == 1, "else an operator decides"
        up.supervisor._is_moved = True
        up.supervisor._restart.set()
        await until(lambda: tries == 3)
        assert not up.supervisor._is_moved
