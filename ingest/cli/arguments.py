"""Types of arguments that several commands have."""

from __future__ import annotations

import argparse

from ingest.config.forward_names import check_forward_name
from ingest.formats.timestamp import text_us
from ingest.system.clock import rfc3339


def forward_name(text: str) -> str:
    """Return the name of a forwarder. Raises ArgumentTypeError."""
    try:
        check_forward_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def time_text(text: str) -> str:
    """Return an RFC 3339 time in UTC. Raises ArgumentTypeError."""
    found = text_us(text)
    if not isinstance(found, int):
        raise argparse.ArgumentTypeError(found[1])
    return rfc3339(found)
