"""The version stands in many files: all have the one of the package. And it keeps its promise."""

from __future__ import annotations

import json
import re

from ingest import __version__
from tests.house.public_names import RECORD, RECORD_ANEW, public_names
from tests.support.documents import DOCUMENTS, REPOSITORY

# An image of ours with its tag, its label, or the tag alone in a kustomization.
_IMAGE = re.compile(r'(?:iot-ingest(?:-archive)?:|newTag: |image\.version=")(\d+\.\d+\.\d+)')
_PLACES = {"deploy/Dockerfile": 2, "deploy/compose.yaml": 2, "docs/run/deploy.md": 2}  # at least


def test_every_image_has_the_version_of_the_package() -> None:
    """In deploy/ and in the documents."""
    files = [path for path in (REPOSITORY / "deploy").rglob("*") if path.is_file()]
    texts = {str(path.relative_to(REPOSITORY)): path.read_text() for path in files}
    texts |= {str(name): text for name, text in DOCUMENTS.items()}
    found = {name: _IMAGE.findall(text) for name, text in texts.items()}
    assert {name: each for name, each in found.items() if set(each) - {__version__}} == {}
    for name, least in _PLACES.items():
        assert len(found[name]) >= least, f"{name} is not looked at"


def test_changelog_begins_with_what_is_not_released() -> None:
    """Nothing is published yet; a release replaces this heading by its version and its date."""
    headings = re.findall(r"^## (.*)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings == ["Unreleased"]


def test_record_has_the_public_names_of_the_code() -> None:
    """So a diff shows each name that comes, changes or goes."""
    now, recorded = public_names(), json.loads(RECORD.read_text())
    differing = {
        kind: sorted({*recorded.get(kind, ())} ^ {*now.get(kind, ())})
        for kind in now.keys() | recorded.keys()
    }
    assert {kind: names for kind, names in differing.items() if names} == {}, RECORD_ANEW
    assert all(len(names) >= 10 for names in recorded.values()), "a kind is not looked at"
