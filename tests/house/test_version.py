"""The version stands in many files: all of them have the one of the package."""

from __future__ import annotations

import re

from ingest import __version__
from tests.support.documents import DOCUMENTS, REPOSITORY

# An image of ours with its tag, or the tag alone in a kustomization.
_IMAGE = re.compile(r"(?:iot-ingest(?:-archive)?:|newTag: )(\d+\.\d+\.\d+)")
_PLACES = {"deploy/Dockerfile": 2, "deploy/compose.yaml": 2, "docs/roles.md": 2}  # at least


def test_every_image_has_the_version_of_the_package() -> None:
    """In deploy/ and in the documents."""
    files = [path for path in (REPOSITORY / "deploy").rglob("*") if path.is_file()]
    texts = {str(path.relative_to(REPOSITORY)): path.read_text() for path in files}
    texts |= {str(name): text for name, text in DOCUMENTS.items()}
    found = {name: _IMAGE.findall(text) for name, text in texts.items()}
    assert {name: each for name, each in found.items() if set(each) - {__version__}} == {}
    for name, least in _PLACES.items():
        assert len(found[name]) >= least, f"{name} is not looked at"


def test_changelog_begins_with_the_version() -> None:
    """With its date, so that it is a release."""
    headings = re.findall(r"^## (.*)$", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert re.fullmatch(rf"\[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d", headings[0])
