"""The list of aiohttp's private names that the connections use; checks the installed version.

aiohttp has no public way to answer a request without a task of its own, to bound the requests that
wait on a connection, or to notice half a head. So we use private names. The list may only get
shorter. A test checks that it has the names in use, and no others.
"""

from __future__ import annotations

from importlib.metadata import version

from aiohttp import http_parser, web

from ingest.model.errors import StartError
from ingest.system.logs import get_logger

SERIES = "3.14."  # the short way was tested with these versions; pyproject.toml has the bound
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
        missing.append("its parser in C (the one in Python is slow and allows request smuggling)")
    if missing:
        raise StartError(
            f"aiohttp {version('aiohttp')} cannot be used: it lacks {', '.join(missing)}; "
            f"install aiohttp {SERIES}x for this platform"
        )


def short_way_is_known() -> bool:
    """Whether requests may be answered on the short way: only with a tested version of aiohttp.

    With another version all requests go aiohttp's own way and get the same answers. One warning is
    logged.
    """
    installed = version("aiohttp")
    if installed.startswith(SERIES):
        return True
    get_logger("http").warning(
        "aiohttp_unknown", version=installed, known=f"{SERIES}x", why="a request costs more CPU"
    )
    return False
