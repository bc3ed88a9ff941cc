"""The private names of aiohttp that the connections use, and whether the installed one has them.

aiohttp has no public way to answer a request without a task of its own, to bound what waits on a
connection, or to see half a head. So these names are listed, and the list may only shrink. A test
holds that it is the list of those that are used.
"""

from __future__ import annotations

from importlib.metadata import version

from aiohttp import http_parser, web

from ingest.model.errors import StartError
from ingest.system.logs import get_logger

SERIES = "3.14."  # the versions that the short way was tried with; pyproject.toml has the bound
OF_HANDLER = (
    "_buffer_paused",
    "_close",
    "_current_request",
    "_keepalive_handle",
    "_loop",
    "_max_msg_queue_size",
    "_messages",
    "_parser",
    "_pause_reading_for_buffer",
    "_payload_parser",
    "_process_keepalive",
    "_reading_paused",
    "_upgraded",
    "_waiter",
)
OF_SERVER = ("_loop",)


def check_names(server: web.Server) -> None:
    """Raise StartError if the library lacks a name that we use, or its parser in C."""
    missing = [name for name in OF_HANDLER if not hasattr(web.RequestHandler, name)]
    missing += [name for name in OF_SERVER if not hasattr(server, name)]
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        missing.append("its parser in C (the other one is slow and let requests be smuggled in)")
    if missing:
        raise StartError(
            f"aiohttp {version('aiohttp')} cannot be used, it lacks {', '.join(missing)}; "
            f"install aiohttp {SERIES}x for this platform"
        )


def short_way_is_known() -> bool:
    """Whether requests may be answered the short way; with an unknown aiohttp none is.

    All then go aiohttp's own way and get the same answers. One warning says so.
    """
    installed = version("aiohttp")
    if installed.startswith(SERIES):
        return True
    get_logger("http").warning(
        "aiohttp_unknown", version=installed, known=f"{SERIES}x", why="a request costs more CPU"
    )
    return False
