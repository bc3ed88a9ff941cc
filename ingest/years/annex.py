"""What this annex adds to the lists of the main house."""

from __future__ import annotations

from ingest.app.annexes import Annex

ANNEX = Annex()
