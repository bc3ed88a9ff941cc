"""Hostile and heavy clients: `python -m benchmarks.attackers KIND PORT`.

A Hold keeps connections that never finish what they began, and opens a new one for each that the
service closes. A Flood repeats one request on some connections. Both print `ready` when all
connections are at work, and go on until they are killed. A flood ends with an error if an answer
has another status than expected: then it was no attack.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from collections.abc import Callable
from typing import NamedTuple

import aiohttp
import uvloop

from benchmarks.processes import raise_open_files_limit

HALF_HEADS = 10_000
HALF_HEAD = b"POST /v1/readings HTTP/1.1\r\nHost: x\r\nContent-Ty"
SLOW_BODIES = 130  # half of them would reserve 64 MiB if the declared size were counted
BODY_HOLDERS = 12_200  # 200 more than the service takes (attack.py)
LOG_INS = 300
OPENED_AT_ONCE = 50
BOMB_BYTES = 200 * 1024**2
BOMBERS = 8
ITEMS = 5_000
TEXT_BYTES = 4 * 1024**2 - 100
PAUSE_S = 0.02  # of a flood: else it would use the core of the ordinary client
REOPEN_S = 0.2  # after the service closed a connection
READY = "ready"
KINDS = {
    "half_heads": "half-sent requests",
    "bombs": "bombs",
    "slow_bodies": "slow large bodies",
    "body_holders": "12,200 connections in a slow body",
    "numbers": "hostile numbers",
    "texts": "hostile texts",
    "nests": "hostile nesting",
    "tiny_items": "small posts of tiny items",
    "large_posts": "posts of 5,000 good readings",
    "log_ins": "unfinished log-ins",
    "admin_pages": "a flood of admin pages",
}

_HEAD = b"POST /v1/readings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


class Hold(NamedTuple):
    """`connections` that each send one of `starts`, in turn, and then nothing."""

    connections: int
    starts: tuple[bytes, ...]
    at_once: int = OPENED_AT_ONCE


class Flood(NamedTuple):
    """One request, again and again, on `connections`; `body` None is a GET."""

    connections: int
    path: str
    body: bytes | None
    statuses: frozenset[int]


def items(item: Callable[[int], str], count: int) -> bytes:
    """Return the gzip of a post with `count` items."""
    return gzip.compress(f"[{','.join(map(item, range(count)))}]".encode(), 9)


def good(at: int) -> str:
    """Return a valid item; all of them are one reading each."""
    return json.dumps(
        {"device_id": f"large-{at % 50}", "metric": "m", "ts": 1_700_000_000 + at, "value": at}
    )


def nested(at: int) -> str:
    """Return an item with 400 brackets."""
    return f'{{"device_id":"d","metric":"m","ts":{at},"value":{"[" * 400}{"]" * 400}}}'


def attack(kind: str) -> Hold | Flood:
    """Return what a kind does. Raises KeyError for an unknown one."""
    makers: dict[str, Callable[[], Hold | Flood]] = {
        "half_heads": lambda: Hold(HALF_HEADS, (HALF_HEAD,)),
        "bombs": lambda: _posts(BOMBERS, gzip.compress(bytes(BOMB_BYTES), 9), 413),
        "slow_bodies": lambda: Hold(
            SLOW_BODIES,
            (
                _HEAD + b"Content-Length: 1048576\r\n\r\n[",
                _HEAD + b"Transfer-Encoding: chunked\r\n\r\n5000\r\n" + b" " * 0x5000 + b"\r\n",
            ),
        ),
        "body_holders": lambda: Hold(BODY_HOLDERS, (_HEAD + b"Content-Length: 100\r\n\r\n[",)),
        "numbers": lambda: _posts(
            4,
            items(lambda _: '{"device_id":"d","metric":"m","ts":1e308,"value":5e-324}', ITEMS),
            422,
        ),
        "texts": lambda: _posts(
            4,
            items(
                lambda _: f'{{"device_id":"d","metric":"m","ts":"{"1" * TEXT_BYTES}x","value":1}}',
                1,
            ),
            413,
        ),
        "nests": lambda: _posts(4, items(nested, 4_900), 413, 422),
        "tiny_items": lambda: _posts(32, items(lambda _: "{}", ITEMS), 422),
        "large_posts": lambda: _posts(4, items(good, ITEMS), 202),
        "log_ins": lambda: Hold(
            LOG_INS,
            (b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n",),
        ),
        "admin_pages": lambda: Flood(32, "/metrics", None, frozenset({200, 429, 503})),
    }
    return makers[kind]()


def _posts(count: int, body: bytes, *statuses: int) -> Flood:
    return Flood(count, "/v1/readings", body, frozenset(statuses))


async def hold(found: Hold, port: int) -> None:
    """Keep the connections, for ever."""
    opened = 0

    async def keep(start: bytes) -> None:
        nonlocal opened
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(start)
                opened += 1
                if opened == found.connections:
                    print(READY, flush=True)
                await reader.read()
                writer.close()
            except OSError:
                pass
            await asyncio.sleep(REOPEN_S)

    async with asyncio.TaskGroup() as group:
        for number in range(1, found.connections + 1):
            group.create_task(keep(found.starts[number % len(found.starts)]))
            if number % found.at_once == 0:
                await asyncio.sleep(0.01)


async def flood(found: Flood, port: int) -> None:
    """Send the request, for ever. Raises RuntimeError if an answer is not as expected."""
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    url = f"http://127.0.0.1:{port}{found.path}"
    answers = 0

    async def repeat(session: aiohttp.ClientSession) -> None:
        nonlocal answers
        while True:
            async with (
                session.get(url)
                if found.body is None
                else session.post(url, data=found.body, headers=headers)
            ) as answer:
                text = await answer.text()
                if answer.status not in found.statuses:
                    raise RuntimeError(f"the attack got {answer.status}: {text}")
            answers += 1
            if answers == found.connections:
                print(READY, flush=True)
            await asyncio.sleep(PAUSE_S)

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for _ in range(found.connections):
            group.create_task(repeat(session))


async def run(kind: str, port: int) -> None:
    """Attack until killed."""
    found = attack(kind)
    await (hold(found, port) if isinstance(found, Hold) else flood(found, port))


def main(kind: str, port: str) -> None:
    """Attack until killed, from a process of its own."""
    raise_open_files_limit()
    uvloop.run(run(kind, int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
