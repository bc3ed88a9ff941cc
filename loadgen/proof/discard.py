"""Discards the dead letters that a run has made on purpose, so that only real ones are left.

It asks the service on its admin port, by the ids of the letters. Does not: touch letters that the
service replays by itself, letters of others, or the files.
"""

from __future__ import annotations

import asyncio

import aiohttp

from loadgen.proof.dead_letters import COMES_BACK, DeadLettersError
from loadgen.proof.local_service import LocalService

IDS_A_REQUEST = 500  # as many as the service takes
ANSWER_S_MAX = 30.0


async def discard(service: LocalService, prefix: str) -> int | None:
    """Discard the dead letters of a run; return their number, or None if it could not be done."""
    try:
        folder = await asyncio.to_thread(service.letters.read, prefix)
        ids = [each.id for each in folder.letters if each.reason not in COMES_BACK]
        timeout = aiohttp.ClientTimeout(total=ANSWER_S_MAX)
        headers = {"Authorization": f"Bearer {service.token}"}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            for start in range(0, len(ids), IDS_A_REQUEST):
                some = ids[start : start + IDS_A_REQUEST]
                url = f"{service.admin_url}/dead-letters/discard"
                async with session.post(url, json={"ids": some}) as answer:
                    if answer.status != 200:
                        return None
    except (aiohttp.ClientError, DeadLettersError, OSError, TimeoutError):
        return None
    return len(ids)
