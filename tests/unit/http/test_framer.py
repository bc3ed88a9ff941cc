"""An aiohttp without its parser in C ends the start."""

from __future__ import annotations

import pytest
from aiohttp import http_parser

from ingest.http.framer import require_parser
from ingest.model.errors import StartError
from tests.support.receiver import running_receiver


def test_installed_one_has_its_parser_in_c() -> None:
    """Nothing is said about it."""
    require_parser()


async def test_parser_in_python_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the version that cannot be used, and what to do."""
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)
    with pytest.raises(StartError, match=r"aiohttp 3\..* lacks its parser in C; install a wheel"):
        async with running_receiver():
            pass
