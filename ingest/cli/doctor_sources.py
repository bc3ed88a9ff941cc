"""What `ingest doctor` says about the file of sources."""

from __future__ import annotations

from ingest.app.rules import make_sources
from ingest.cli.doctor_database import FAIL, OK, Check
from ingest.config.settings import Settings
from ingest.model.errors import ConfigError
from ingest.system.words import counted


def sources_check(settings: Settings) -> Check:
    """Check that the tables can be compiled; the service would not start else."""
    name = "sources"
    try:
        sources = make_sources(settings)
    except ConfigError as error:
        return Check(name, FAIL, str(error))
    return Check(name, OK, f"{counted(len(sources), 'source')}: {', '.join(sources)}")
