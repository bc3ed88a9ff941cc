"""`python -m benchmarks.hellos`: posts over TLS beside clients that drop each handshake.

A polite client posts ORDINARY_PER_S single readings a second over 64 connections, alone and beside
an attacker: HELLOS_PER_S times a second it connects, sends a complete ClientHello, waits for the
answer of the service, for which the private key was used, and drops the connection. Both are
measured alternately, ROUNDS times. Exit codes: 0 the p99 beside it is below 25 ms, or below twice
that alone, 1 it is not.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import uvloop

from benchmarks.contenders import FIRST_US, PHASE_US
from benchmarks.open_loop import Load, OpenLoop, drive_openly
from benchmarks.processes import Broken, Child, scratch, serving
from benchmarks.service import Service

ORDINARY_PER_S = 1_000
HELLOS_PER_S = 1_000
AT_ONCE = 50
SECONDS = 5.0
ROUNDS = 3
P99_MS_MAX = 25.0
READY = "ready"
KEYS = {"P-256": ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "RSA 2048": ("rsa:2048",)}


def main() -> int:
    """Measure with both kinds of keys; print a line for each; return the exit code."""
    good = True
    for name, words in KEYS.items():
        with scratch() as folder:
            files = certificate(folder, words)
            flags = ("--tls-cert-file", str(files[0]), "--tls-key-file", str(files[1]))
            with Service(folder / "state", *flags) as service:
                alone, beside, hellos_per_s = _rounds(service, folder)
        allowed_ms = max(P99_MS_MAX, 2 * min(alone))
        good = good and max(beside) <= allowed_ms
        print(
            f"{name}: p99 alone {min(alone):.1f} to {max(alone):.1f} ms, beside "
            f"{hellos_per_s:,.0f} dropped handshakes a second {min(beside):.1f} to "
            f"{max(beside):.1f} ms ({allowed_ms:.1f} ms allowed)",
            flush=True,
        )
    return 0 if good else 1


def certificate(folder: Path, key: tuple[str, ...]) -> tuple[Path, Path]:
    """Make a certificate with this kind of key; return its file and that of the key. Blocks."""
    files = folder / "server.crt", folder / "server.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", *key, "-nodes", "-days", "9"),
            *("-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", files[0], "-keyout", files[1]),
        ],
        check=True,
        capture_output=True,
    )
    return files


def _rounds(service: Service, folder: Path) -> tuple[list[float], list[float], float]:
    """Return p99 alone and beside the attack, and handshakes a second."""
    alone, beside, done = [], [], 0
    _steady(service, 1.0, 0)  # warms up
    for number in range(ROUNDS):
        alone.append(_steady(service, SECONDS, 2 * number + 1).p99_ms)
        words = [sys.executable, "-m", "benchmarks.hellos", str(service.port)]
        attacker = Child("hellos", words, folder)
        with serving(attacker, partial(_is_ready, attacker)):
            began = _counted(attacker)
            beside.append(_steady(service, SECONDS, 2 * number + 2).p99_ms)
            done += _counted(attacker) - began
    return alone, beside, done / (ROUNDS * SECONDS)


def _is_ready(attacker: Child) -> bool:
    return READY in attacker.output().split()


def _counted(attacker: Child) -> int:
    return max((int(each) for each in attacker.output().split() if each.isdecimal()), default=0)


def _steady(service: Service, seconds: float, phase: int) -> OpenLoop:
    load = Load(service.port, ORDINARY_PER_S, seconds, FIRST_US + phase * PHASE_US)
    found = drive_openly(load._replace(ca_file=str(service.info["cert_file"])))
    if found.failed or not found.taken_rows:
        raise Broken(f"not every post was taken: {found}")
    return found


async def attack(port: int) -> None:
    """Drop handshakes until killed; print how many, some ten times a second."""
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        hello = outgoing.read()
    done = 0
    free = asyncio.Semaphore(AT_ONCE)

    async def drop_one() -> None:
        nonlocal done
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(hello)
            if await reader.read(1):
                done += 1
            writer.transport.abort()
        except OSError:
            pass
        finally:
            free.release()

    print(READY, flush=True)
    began_s, begun, told_s = time.monotonic(), 0, 0.0
    tasks = set[asyncio.Task[None]]()
    while True:
        await free.acquire()
        task = asyncio.create_task(drop_one())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        begun += 1
        now_s = time.monotonic()
        if now_s - told_s > 0.1:
            told_s = now_s
            print(done, flush=True)
        await asyncio.sleep(max(0.0, began_s + begun / HELLOS_PER_S - now_s))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        uvloop.run(attack(int(sys.argv[1])))
    sys.exit(main())
