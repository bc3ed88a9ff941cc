"""What `./run bench --roles` compares: `ingest serve`, `ingest up`, and roles with three brokers.

Each arm starts real processes with a state folder on a disk, and tells the CPU, the memory and the
bytes written of every role, from the kernel's accounts. Promises: the PostgreSQL of each arm is an
embedded one with the same settings, and the 202 is `durable`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from benchmarks.contenders import JOURNAL
from benchmarks.database import running_database
from benchmarks.processes import (
    REPOSITORY,
    START_S_MAX,
    Broken,
    Child,
    accepts,
    answers,
    cpu_below_s,
    cpu_clock_s,
    descendants,
    free_port,
    rss_mib,
)
from benchmarks.service import Service
from ingest.roles.embedded_broker import (
    Endpoints,
    config_text,
    find_program,
    new_passwords,
    running_broker,
)
from ingest.roles.nats.watch import ask

SERVICE, GATEWAY, BROKER, WRITER = "service", "gateway", "nats-server", "writer"
SUPERVISOR, POSTGRES = "supervisor", "PostgreSQL"
ROLES = (SERVICE, GATEWAY, BROKER, WRITER, SUPERVISOR, POSTGRES)
STORED_S_MAX = 60.0
POLL_S = 0.02
PAYLOAD_BYTES_MAX = 8 * 1024**2
STORE_BYTES_MAX = 16 * 1024**3
STREAM_BYTES_MAX = "2GiB"
MEMBERS = 3


class Used(NamedTuple):
    """What the roles have used so far: seconds of CPU, bytes written; messages of the stream."""

    cpu_s: Mapping[str, float]
    disk_bytes: Mapping[str, float]
    messages: int

    def since(self, before: Used) -> Used:
        """Return what was used since then."""
        return Used(
            {role: each - before.cpu_s[role] for role, each in self.cpu_s.items()},
            {role: each - before.disk_bytes[role] for role, each in self.disk_bytes.items()},
            self.messages - before.messages,
        )


class Arm(Protocol):
    """One thing that runs and takes posts at `port`."""

    port: int

    @property
    def database_url(self) -> str:
        """The database that it writes to."""

    def wait_stored(self) -> None:
        """Return once all that was answered is in the table. Raises Broken after a time."""

    def used(self) -> Used:
        """Return what each role has used so far."""

    def peaks_mib(self) -> dict[str, float]:
        """Return the most memory that each of our processes has had; the largest of a role."""


class Processes:
    """The processes of an arm by role. `parent` is the process that started PostgreSQL."""

    def __init__(self, roles: Mapping[str, Sequence[int]], parent: int) -> None:
        self._roles = roles
        self._parent = parent

    def cpu_s(self) -> dict[str, float]:
        """Return the seconds of CPU by role."""
        servers = postgres_below(self._parent)
        own = {role: sum(map(cpu_clock_s, pids)) for role, pids in self._roles.items()}
        return {**own, POSTGRES: sum(cpu_clock_s(pid) + cpu_below_s(pid) for pid in servers)}

    def disk_bytes(self) -> dict[str, float]:
        """Return the bytes that were written to files, by role."""
        tree = [each for pid in postgres_below(self._parent) for each in (pid, *descendants(pid))]
        own = {role: sum(map(_written_bytes, pids)) for role, pids in self._roles.items()}
        return {**own, POSTGRES: sum(map(_written_bytes, tree))}

    def peaks_mib(self) -> dict[str, float]:
        """Return the most memory of a process of each role of ours."""
        return {
            role: max(rss_mib(pid, "VmHWM") for pid in pids) for role, pids in self._roles.items()
        }


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def postgres_below(parent: int) -> list[int]:
    """Return the servers of PostgreSQL that a process has started, without their own children."""
    found = []
    for pid in _children(parent):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text().strip() == "postgres":
                found.append(pid)
    return found


def _written_bytes(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/io").read_text()
    except OSError:  # it has ended
        return 0.0
    found = re.search(r"^write_bytes: (\d+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


class OneProcess:
    """`ingest serve` with its journal."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.port = service.port
        self._processes = Processes({SERVICE: [service.child.pid]}, service.child.pid)

    @property
    def database_url(self) -> str:
        """The embedded database."""
        return self._service.database_url

    def wait_stored(self) -> None:
        """Wait until it holds no reading."""
        self._service.quiet(poll_s=POLL_S, within_s=STORED_S_MAX)

    def used(self) -> Used:
        """Return what both parts have used so far."""
        return Used(self._processes.cpu_s(), self._processes.disk_bytes(), 0)

    def peaks_mib(self) -> dict[str, float]:
        """Return the service's peak of memory."""
        return self._processes.peaks_mib()


class Roles:
    """Gateways and writers with a broker between them. `monitors` are its monitor ports."""

    def __init__(
        self, port: int, database_url: str, monitors: Sequence[str], processes: Processes
    ) -> None:
        self.port = port
        self.database_url = database_url
        self._monitors = monitors
        self._processes = processes

    def wait_stored(self) -> None:
        """Wait until every message of the stream is acknowledged: that is after the commit."""
        end_s = time.monotonic() + STORED_S_MAX
        quiet = 0
        while quiet < 2:
            quiet = 0 if self._is_behind() else quiet + 1
            if time.monotonic() > end_s:
                raise Broken(f"the stream still has messages after {STORED_S_MAX:g} s")
            time.sleep(POLL_S)

    def used(self) -> Used:
        """Return what each role has used so far."""
        messages = max(int(each["state"]["last_seq"]) for each in self._streams())
        return Used(self._processes.cpu_s(), self._processes.disk_bytes(), messages)

    def peaks_mib(self) -> dict[str, float]:
        """Return the peaks of memory by role."""
        return self._processes.peaks_mib()

    def _streams(self) -> Iterator[dict[str, Any]]:
        """Yield the stream as each server knows it."""
        for url in self._monitors:
            found = ask(url, "/jsz?accounts=1&streams=1&consumers=1")
            for account in found.get("account_details") or ():
                for each in account.get("stream_detail") or ():
                    if each["name"] == "INGEST":
                        yield each

    def _is_behind(self) -> bool:
        """Ask the leader of the consumer: its floor must be the end of the stream."""
        streams = list(self._streams())
        last = max(int(each["state"]["last_seq"]) for each in streams)
        floors = [
            int(consumer["ack_floor"]["stream_seq"])
            for each in streams
            for consumer in each.get("consumer_detail") or ()
            if consumer["name"] == "writer"
        ]
        return max(floors, default=0) < last


@contextmanager
def one_process(folder: Path) -> Iterator[OneProcess]:
    """Give `ingest serve`."""
    flags = (*JOURNAL, "--ack-default", "durable")
    with Service(folder / "serve", *flags) as service:
        yield OneProcess(service)


def start_up(folder: Path, *flags: str, port: int = 0) -> Service:
    """Return `ingest up`, started and not entered."""
    return Service(folder, *flags, port=port, command="up")


@contextmanager
def several_processes(folder: Path, gateways: int) -> Iterator[Roles]:
    """Give `ingest up` with so many gateways and one writer."""
    state = folder / "up"
    with start_up(state, "--gateways", str(gateways)) as service:
        published = running_broker(state / "broker")
        if published is None:
            raise Broken("`ingest up` runs no broker")
        pids = roles_below(service.child.pid)
        counts = Counter({role: len(each) for role, each in pids.items()})
        if counts != Counter({GATEWAY: gateways, WRITER: 1, BROKER: 1, SUPERVISOR: 1}):
            raise Broken(f"`ingest up` has other processes than expected: {dict(counts)}")
        yield Roles(
            service.port,
            service.database_url,
            [published.endpoints.monitor_url],
            Processes(pids, service.child.pid),
        )


def roles_below(pid: int) -> dict[str, list[int]]:
    """Return the processes of an `ingest up` by role, without PostgreSQL."""
    found: dict[str, list[int]] = {SUPERVISOR: [pid]}
    for child in _children(pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"--control-fd" in words:
                role = GATEWAY if GATEWAY.encode() in words else WRITER
                found.setdefault(role, []).append(child)
            elif b"nats-server" in words[0]:
                found.setdefault(BROKER, []).append(child)
    return found


class Member(NamedTuple):
    """One server of a cluster: where it is, and its configuration file."""

    at: Endpoints
    config: Path


def members_in(folder: Path) -> list[Member]:
    """Write the configurations of three servers that are one cluster."""
    passwords = new_passwords()
    ports = [free_port() for _ in range(3 * MEMBERS)]
    routes = [f"nats://127.0.0.1:{port}" for port in ports[2 * MEMBERS :]]
    found = []
    for number in range(MEMBERS):
        home = folder / f"n{number + 1}"
        home.mkdir(parents=True)
        at = Endpoints(ports[number], ports[MEMBERS + number], "/monitor", passwords)
        text = config_text(
            at,
            store=home / "store",
            log=home / "log",
            store_bytes_max=STORE_BYTES_MAX,
            payload_bytes_max=PAYLOAD_BYTES_MAX,
        ).replace("server_name: iot-ingest", f"server_name: n{number + 1}")
        listen = f"127.0.0.1:{ports[2 * MEMBERS + number]}"
        text += f'cluster {{ name: C, listen: "{listen}", routes: {json.dumps(routes)} }}\n'
        found.append(Member(at, home / "server.conf"))
        found[-1].config.write_text(text)
        found[-1].config.chmod(0o600)
    return found


@contextmanager
def three_brokers(folder: Path) -> Iterator[Roles]:
    """Give one gateway and one writer with a stream of three copies, each synced to the disk."""
    members = members_in(folder / "cluster")
    monitors = [each.at.monitor_url for each in members]
    hosts = ",".join(f"127.0.0.1:{each.at.port}" for each in members)
    port = free_port()

    def role(name: str, *words: str, port_of_role: int = 0, **more: str) -> Child:
        user = "admin" if name == "stream" else name
        env = {
            "PYTHONPATH": str(REPOSITORY),
            "INGEST_BROKER_URL": f"nats://{user}:{members[0].at.passwords[user]}@{hosts}",
            "INGEST_BROKER_MONITOR_URL": ",".join(monitors),
            "INGEST_STREAM_REPLICAS": str(MEMBERS),
            "INGEST_STREAM_BYTES_MAX": STREAM_BYTES_MAX,
            "INGEST_STATE_DIR": str(folder / name),
            "INGEST_LISTEN": f"127.0.0.1:{port_of_role}",
            "INGEST_ADMIN_LISTEN": "127.0.0.1:0",
            "INGEST_LOG_LEVEL": "warning",
            **more,
        }
        return Child(name, [sys.executable, "-P", "-m", "ingest", name, *words], folder, env=env)

    with ExitStack() as ending, running_database() as database:
        servers = []
        for number, each in enumerate(members, 1):
            program: list[str | Path] = [find_program(), "-c", each.config]
            servers.append(Child(f"n{number}", program, folder))
            ending.callback(servers[-1].stop)
        for each, server in zip(members, servers, strict=True):
            url = f"{each.at.monitor_url}/healthz"
            server.wait_until(lambda url=url: answers(url, '"ok"'))  # type: ignore[misc]
        end_s = time.monotonic() + START_S_MAX
        while (code := role("stream", "apply").wait()) != 0:  # they have just found each other
            if time.monotonic() > end_s:
                raise Broken(f"`ingest stream apply` ends with {code}")
            time.sleep(0.2)
        gateway = role(GATEWAY, port_of_role=port)
        ending.callback(gateway.stop)
        writer = role(WRITER, INGEST_DATABASE_URL=database.url)
        ending.callback(writer.stop)
        gateway.wait_until(lambda: accepts(port))
        pids = {
            GATEWAY: [gateway.pid],
            WRITER: [writer.pid],
            BROKER: [each.pid for each in servers],
        }
        yield Roles(port, database.url, monitors, Processes(pids, os.getpid()))
