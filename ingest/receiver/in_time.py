"""Bounds the time in which the body of a post is decoded, where its answer is due.

Decoding takes turns with other posts. So it may take long, though each step is short.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ingest.model.errors import Refused
from ingest.system.clock import monotonic_s

AGAIN_S = 2.0


@asynccontextmanager
async def in_time(answer_by_s: float) -> AsyncIterator[None]:
    """Cancel what is inside when the answer is due (monotonic).

    Raises Refused (`buffer_full`) then: nothing of the post is kept.
    """
    due = asyncio.timeout(max(0.0, answer_by_s - monotonic_s()))
    try:
        async with due:
            yield
    except TimeoutError:
        if not due.expired():
            raise  # of what is inside
        why = "the service could not read the post in time, since it reads others; nothing is kept"
        raise Refused("buffer_full", why, retry_after_s=AGAIN_S) from None
