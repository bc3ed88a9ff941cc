"""`./run bench --mqtt`: 10,000 messages of MQTT a second, and what they cost each program.

A client publishes with QoS 1, one reading a message, to a Mosquitto of its own; `ingest mqtt` posts
them to the service, with the journal and `ack=durable`. After WARM_S the CPU of each program is
measured for `--seconds`. Prints a table. Exit codes: 0 the service took CORES_MAX at most and every
message is in the table, 1 it took more.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.contenders import FIRST_US, JOURNAL
from benchmarks.options import count, seconds_within
from benchmarks.processes import (
    REPOSITORY,
    Broken,
    Child,
    accepts,
    answers,
    fetch,
    free_port,
    scratch,
    serving,
)
from benchmarks.service import Service

MESSAGES_PER_S = 10_000
SECONDS = 20.0
WARM_S = 3.0
REST_S = 3.0  # the publisher goes on for so long after the measurement
DEVICES = 200
CORES_MAX = 0.2
TICK_S = 0.01
QUEUED_MAX = 20_000  # of messages that Mosquitto has not acknowledged
LATE_S_MAX = 30.0
PROGRAM = shutil.which("mosquitto") or "/usr/sbin/mosquitto"


class _Load(NamedTuple):
    rate: int  # messages a second
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; print a table; return the exit code."""
    parser = argparse.ArgumentParser(prog="./run bench", description=__doc__)
    parser.add_argument("--mqtt", action="store_true", help="this benchmark, alone")
    parser.add_argument("--seconds", type=seconds_within(1, 3600), default=SECONDS)
    parser.add_argument("--rate", type=count, default=MESSAGES_PER_S, help="messages a second")
    chosen = parser.parse_args(arguments)
    load = _Load(chosen.rate, chosen.seconds)
    if not Path(PROGRAM).exists():
        print("there is no mosquitto: apt-get install mosquitto", file=sys.stderr)
        return 2
    with scratch() as folder, Service(folder / "state", *JOURNAL) as service:
        port = free_port()
        (folder / "mosquitto.conf").write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n"
        )
        broker = Child("mosquitto", [PROGRAM, "-c", folder / "mosquitto.conf"], folder)
        with serving(broker, partial(accepts, port)):
            admin = free_port()
            bridge = _bridge(folder, service.port, port, admin)
            with serving(bridge, partial(answers, f"http://127.0.0.1:{admin}/readyz")):
                cores, per_post = _measured(load, folder, service, broker, bridge, port, admin)
    for name, value in cores.items():
        print(f"| {name} | {value:.2f} |")
    print(f"{per_post:.0f} messages a post; allowed for the service: {CORES_MAX:.2f} cores")
    return 0 if cores["service"] <= CORES_MAX else 1


def _bridge(folder: Path, service_port: int, broker_port: int, admin_port: int) -> Child:
    words = ["--mqtt-url", f"mqtt://127.0.0.1:{broker_port}", "--topic", "sensors/#"]
    words += ["--url", f"http://127.0.0.1:{service_port}", "--ack", "durable"]
    words += ["--admin-listen", f"127.0.0.1:{admin_port}", "--state-dir", str(folder / "mqtt")]
    command = [sys.executable, "-P", "-m", "ingest", "mqtt", *words]
    return Child("ingest mqtt", command, folder, env={"PYTHONPATH": str(REPOSITORY)})


def _measured(  # noqa: PLR0917
    load: _Load,
    folder: Path,
    service: Service,
    broker: Child,
    bridge: Child,
    port: int,
    admin: int,
) -> tuple[dict[str, float], float]:
    """Return the cores of each program, and how many messages a post had."""
    words = [sys.executable, "-m", "benchmarks.mqtt", str(port), *map(str, load)]
    publisher = Child("publisher", words, folder)
    programs = {"mosquitto": broker, "ingest mqtt": bridge, "service": service.child}
    time.sleep(WARM_S)
    began_s = time.monotonic()
    before = {name: each.cpu_s() for name, each in programs.items()}
    postgres_s = service.cpu().postgres_s
    time.sleep(load.seconds)
    took_s = time.monotonic() - began_s
    cores = {name: (each.cpu_s() - before[name]) / took_s for name, each in programs.items()}
    cores["PostgreSQL"] = (service.cpu().postgres_s - postgres_s) / took_s
    if publisher.wait() != 0:
        raise Broken(f"the publisher failed: {publisher.output()}")
    sent = int(publisher.output())
    end_s = time.monotonic() + LATE_S_MAX
    while service.committed() < sent:
        if time.monotonic() > end_s:
            raise Broken(f"{service.committed():,.0f} of {sent:,} messages are in the table")
        time.sleep(0.1)
    service.quiet()
    posts = sum(
        float(line.rsplit(" ", 1)[1])
        for line in fetch(f"http://127.0.0.1:{admin}/metrics").splitlines()
        if line.startswith("ingest_mqtt_posts_total")
    )
    return cores, sent / posts


def publish(port: int, load: _Load) -> None:
    """Publish; print how many were acknowledged, which must be all.

    Raises Broken if it is late: then it was not the rate that the table names.
    """
    client = Client(CallbackAPIVersion.VERSION2, client_id="publisher")
    client.max_inflight_messages_set(QUEUED_MAX)
    acknowledged = Counter[str]()

    def taken(*_what: object) -> None:
        acknowledged["messages"] += 1

    client.on_publish = taken
    client.connect("127.0.0.1", port)
    client.loop_start()
    total = int(load.rate * (WARM_S + load.seconds + REST_S))
    began_s, sent = time.monotonic(), 0
    end_s = began_s + total / load.rate + LATE_S_MAX
    while acknowledged["messages"] < total and time.monotonic() < end_s:
        due = int((time.monotonic() - began_s) * load.rate)
        for number in range(sent, min(total, due, acknowledged["messages"] + QUEUED_MAX)):
            device = number % DEVICES
            body = (
                f'{{"device_id":"device-{device}","metric":"temperature","ts":{FIRST_US + number},'
                f'"value":21.5}}'
            )
            client.publish(f"sensors/{device}", body, qos=1)
            sent = number + 1
        time.sleep(TICK_S)
    took_s = time.monotonic() - began_s
    client.disconnect()
    client.loop_stop()
    if took_s > 1.1 * total / load.rate:
        raise Broken(f"the publisher took {took_s:.1f} s")
    print(sent)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        publish(int(sys.argv[1]), _Load(int(sys.argv[2]), float(sys.argv[3])))
    else:
        sys.exit(main())
