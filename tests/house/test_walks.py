"""How many calls and files a post goes through stays below ceilings. They may only be lowered."""

from __future__ import annotations

import sys

import pytest

from tests.house.walks import WALKS, Figures, walk

CEILINGS = {"(a)": (120, 37), "(d)": (280, 46)}  # calls and files until its client has the answer


@pytest.mark.skipif(sys.version_info < (3, 12), reason="each comprehension is a call there")
@pytest.mark.parametrize("name", WALKS)
def test_a_post_goes_through_few_calls_and_files(name: str) -> None:
    """Whoever follows a post has to read them."""
    found = Figures.of(walk(WALKS[name]))
    calls_max, files_max = CEILINGS[name[:3]]
    assert found.calls <= calls_max
    assert found.files <= files_max
