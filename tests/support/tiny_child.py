"""A child of `ingest up` for tests: it speaks the control protocol, and keeps nothing.

A gateway answers each post with 202 and its pid. What it does wrong is said by TINY: words, for one
instance (`gateway-1:never_ready`) or for all (`never_ready`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import uvloop

from ingest.model.errors import StartError
from ingest.model.ledger import Ledger
from ingest.roles.supervisor.child import ControlChannel

if sys.argv[1] == "gateway" or TYPE_CHECKING:  # a writer starts faster
    from ingest.http.request_and_answer import TEXT, Answer, Request
    from ingest.http.routes import POST, READ, Port, Route

BEAT_S = 0.1
IDLE_S, LEAVE_S = 1.0, 2.0  # no client of the tests is idle for so long


def does(instance: str, fault: str) -> bool:
    """Whether this instance has this fault."""
    words = os.environ.get("TINY", "").split()
    return fault in words or f"{instance}:{fault}" in words


class Tiny:
    """One such process."""

    def __init__(self, role: str, channel: ControlChannel) -> None:
        self.role = role
        self.channel = channel
        self.instance = ""
        self.count = 0
        self.state = "starting"
        self.started_us = time.time_ns() // 1000
        self.port: Port | None = None

    async def run(self) -> int:
        """Live until the supervisor says otherwise; return the exit code."""
        first = await self.channel.receive()
        if first is None:
            return 0
        self.instance = first["instance"]
        if does(self.instance, "fails"):
            raise StartError("the moon is full")
        if does(self.instance, "exits"):
            return 7
        beating = asyncio.create_task(self.beat())
        if does(self.instance, "never_ready"):
            await asyncio.sleep(3600)
        if first["listen_fd"] is not None:
            self.port = Port(
                {"/v1/readings": Route(POST, self.answer), "/config": Route(READ, self.config)},
                Ledger(),
                flag="--listen",
                connections_max=5_000,
                header_s_max=5,
                keepalive_s_max=60,
            )
            self.configuration = first
            await self.port.start("", 0, [socket.socket(fileno=first["listen_fd"])])
        self.state = "accepting"
        self.channel.send({"ready": True})
        await self.obey()
        beating.cancel()
        self.channel.send({"status": self.status()})
        self.channel.send({"drained": {"lost": self.lost()}})
        return 0

    def lost(self) -> int:
        """Return how many readings it says it has lost."""
        return 5 if does(self.instance, "loses") else 0

    async def obey(self) -> None:
        """Do what the supervisor says, until the end."""
        while (message := await self.channel.receive()) is not None:
            if message["do"] == "release_hold":
                self.count += 1000
                continue
            if does(self.instance, "never_ends"):
                await asyncio.sleep(3600)
            if message["do"] == "step_down" and self.port is not None:
                await self.port.connections.step_down(idle_s=IDLE_S, timeout_s=LEAVE_S)
            break
        if self.port is not None:
            await self.port.connections.close()

    async def beat(self) -> None:
        """Say that it lives."""
        while True:
            self.channel.send({"status": self.status()})
            await asyncio.sleep(BEAT_S)

    def status(self) -> dict[str, Any]:
        """Return a status as that of a real process."""
        return {
            "role": self.role,
            "version": "tiny",
            "pid": os.getpid(),
            "started_us": self.started_us,
            "sent_us": time.time_ns() // 1000,
            "final": False,
            "cpu_s": 0.0,
            "memory_bytes": 0,
            "counters": self.ledger().snapshot(),
            "gauges": None,
            "ready": {"state": self.state, "cause": "", "reason": ""},
            "message": "",
            "tail": {"posts": 0, "readings": [], "rejected": [], "rejected_sampled": False},
            "refused_posts": [],
        }

    def ledger(self) -> Ledger:
        """Return counters: what it has counted is stored."""
        ledger = Ledger()
        ledger.delivered = ledger.committed = self.count
        return ledger

    def answer(self, request: Request, query: str, received_s: float) -> Answer:
        """Answer a post; one that says `block` freezes the process."""
        if query == "block":
            time.sleep(3600)
        if query == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        self.count += 1
        return Answer(202, str(os.getpid()).encode(), TEXT)

    def config(self, request: Request, query: str, received_s: float) -> Answer:
        """Return the configuration as Python shows it."""
        return Answer(200, repr(self.configuration).encode(), TEXT)


async def main() -> int:
    """Open the channel and run."""
    channel = await ControlChannel.inherited(int(sys.argv[sys.argv.index("--control-fd") + 1]))
    async with channel:
        return await Tiny(sys.argv[1], channel).run()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            sys.exit(runner.run(main()))
        except StartError:
            sys.exit(2)
