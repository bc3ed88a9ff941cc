"""Reads a message that no reader was given: from the stream's leader, then from the other copies.

nats-server reads from one copy. If a message is damaged there, it skips it without a word, though
other servers have it whole. Only the leader answers; so for a moment another server leads.
Promises: None means that no copy has the message. BrokerAway means that this is not known now.
"""

from __future__ import annotations

import asyncio

from ingest.broker import manage
from ingest.broker.connection import BrokerConnection
from ingest.broker.manage import Found
from ingest.broker.stream_state import StreamState, state_of
from ingest.model.errors import BrokerAway
from ingest.system import clock
from ingest.system.logs import get_logger

PAUSE_S = 10.0  # between two rounds of other leaders: publishing waits for each of them
LEADER_S_MAX = 5.0

_log = get_logger("broker")


class SecondRead:
    """Reads messages of the stream by their places."""

    def __init__(self, connection: BrokerConnection) -> None:
        self._connection = connection
        self._due_s = 0.0

    async def read(self, place: int, state: StreamState) -> bytes | None:
        """Return the message; None if no copy has it. Raises BrokerAway, and BrokerRefused."""
        data = await manage.message(self._connection, place)
        if data is not None:
            return data
        again = await self._look()
        if again.first > place:
            raise BrokerAway(f"message {place} was removed meanwhile")
        if again.leader != state.leader:
            raise BrokerAway(f"{again.leader or 'no server'} leads the stream now")
        if state.replicas == 1:
            return None
        if clock.monotonic_s() < self._due_s:
            raise BrokerAway("other copies were asked a moment ago")
        self._due_s = clock.monotonic_s() + PAUSE_S
        _log.error("stream_copy_damaged", server=state.leader, place=place)
        return await self._read_elsewhere(place, again)

    async def _read_elsewhere(self, place: int, state: StreamState) -> bytes | None:
        for server in state.copies:
            await manage.lead_from(self._connection, server)
            await self._led_by(server)
            data = await manage.message(self._connection, place)
            if data is not None:
                return data
        if len(state.copies) + 1 < state.replicas:
            raise BrokerAway(f"a copy of message {place} is out of reach")
        return None

    async def _led_by(self, server: str) -> None:
        """Wait until this server leads. Raises BrokerAway if it does not."""
        until_s = clock.monotonic_s() + LEADER_S_MAX
        while clock.monotonic_s() < until_s:
            try:
                if (await self._look()).leader == server:
                    return
            except BrokerAway:  # nobody leads
                pass
            await asyncio.sleep(0.05)
        raise BrokerAway(f"{server} does not lead the stream")

    async def _look(self) -> StreamState:
        found = await manage.look_at_stream(self._connection)
        state = state_of(Found(found, None))
        if state is None:
            raise BrokerAway("the stream is missing")
        return state
