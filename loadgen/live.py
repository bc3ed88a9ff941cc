"""Shows the progress of a command: redrawn in place on a terminal, else a line every 5 s.

Promises: drawing takes the event loop 1 ms twice a second, which does not change a p99.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_LINE_S = 5.0
LIVE_S = 0.5


@contextmanager
def shown(
    line: Callable[[], str], *, on_stdout: bool = False, stays: bool = False
) -> Iterator[None]:
    """Show `line()` while the block runs.

    On stderr, unless `on_stdout`. `stays`: the last line is not removed at the end.
    """
    console = Console(stderr=not on_stdout)
    with ExitStack() as stack:
        if console.is_terminal:
            live = stack.enter_context(
                Live(console=console, auto_refresh=False, transient=not stays)
            )

            def show() -> None:
                live.update(Text(line(), overflow="fold"), refresh=True)

            stack.callback(show)
        else:

            def show() -> None:
                print(line(), file=console.file, flush=True)

        task = asyncio.create_task(_every(LIVE_S if console.is_terminal else PLAIN_LINE_S, show))
        stack.callback(task.cancel)
        yield


async def _every(period_s: float, show: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(period_s)
        show()
