"""What must be true of the installed aiohttp: its parser is the one in C.

The connections use its request parser and its StreamReader and nothing else of its inside.
"""

from __future__ import annotations

from importlib.metadata import version

from aiohttp import http_parser

from ingest.model.errors import StartError


def require_parser() -> None:
    """Raise StartError if the parser is the one in Python.

    That one is slow, and it takes some requests apart in another way than proxies do.
    """
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise StartError(
            f"aiohttp {version('aiohttp')} cannot be used: it lacks its parser in C; install a "
            "wheel of it for this platform"
        )
