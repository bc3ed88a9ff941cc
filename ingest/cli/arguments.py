"""The type of an argument that several commands have."""

from __future__ import annotations

import argparse

from ingest.config.forward_names import check_forward_name


def forward_name(text: str) -> str:
    """Return the name of a forwarder. Raises ArgumentTypeError."""
    try:
        check_forward_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
