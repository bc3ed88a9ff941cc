"""A short campaign of each format; and that a wrong decoder would be found."""

from __future__ import annotations

import pytest

from ingest.formats.json.fast import block_of
from tests.fuzz import __main__ as command
from tests.fuzz.campaign import FORMATS, campaign


@pytest.mark.parametrize("name", FORMATS)
def test_no_body_differs_from_its_oracle(name: str) -> None:
    """500 bodies; enough of them are compared value by value."""
    came = campaign(name, 500)
    assert came.total() == 500
    assert all(came[each] >= 20 for each in ("readings", "with faults", "refused")), came


def test_wrong_value_is_found_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A decoder that loses the last readings of a block makes the command fail, with the body."""
    really = block_of
    monkeypatch.setattr(
        "ingest.formats.json.body.block_of",
        lambda rows, post: really(
            type(rows)(rows.tuples[:-8] + bytes(8), rows.rows, rows.newest_us, rows.items), post
        ),
    )
    assert command.main(["--bodies", "100", "--only", "ndjson"]) == 1
    told = capsys.readouterr()
    assert "ndjson, seed 1, body" in told.err
