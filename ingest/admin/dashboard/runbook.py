"""The runbook for the page: a section of deploy/RUNBOOK.md, or all of it, as plain text.

The file is beside the package in a checkout and in the image. A wheel has it in the package.
Does not: exist in every installation.
"""

from __future__ import annotations

import re
from pathlib import Path

import ingest
from ingest.admin.dashboard.assets import HEADERS, NO_STORE
from ingest.admin.dashboard.query import parameters
from ingest.http.request import Request
from ingest.http.response import Answer
from ingest.model.errors import Refused

_PACKAGE = Path(ingest.__file__).parent
FILE = _PACKAGE / "RUNBOOK.md"
if not FILE.is_file():
    FILE = _PACKAGE.parent / "deploy" / "RUNBOOK.md"


def sections(text: str) -> dict[str, str]:
    """Return the sections by the anchor of their heading."""
    parts = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    return {
        re.sub(r"[^a-z0-9 -]", "", part[3:].split("\n")[0].lower()).replace(" ", "-"): part
        for part in parts[1:]
    }


async def runbook(_request: Request, query: str) -> Answer:
    """Answer `/runbook`; with `section` only that one. Raises Refused `not_found`."""
    section = parameters(query, "section").get("section")
    text = FILE.read_text() if FILE.is_file() else None
    if text is not None and section:
        text = sections(text).get(section)
    if text is None:
        raise Refused("not_found", "there is no such section in the runbook here")
    return Answer(200, text.encode(), b"text/plain; charset=utf-8", headers=HEADERS + NO_STORE)
