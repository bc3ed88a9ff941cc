"""How many calls and files a post goes through stays below ceilings. They may only be lowered."""

from __future__ import annotations

import sys

import pytest

from tests.house.walks import WALKS, Figures, walk

# Until its client has the answer. A careful reader takes many calls for a faulty item.
# Declared tables brought three files to (d): the home of a metric, and the bytes of its rows. One
# more has the pause of long work, which four parts had each for itself, and with a fault.
CEILINGS = {"(a)": Figures(108, 91, 25, 10), "(d)": Figures(272, 182, 35, 10)}


@pytest.mark.parametrize("name", WALKS)
def test_a_post_goes_through_few_calls_and_files(name: str) -> None:
    """Whoever follows a post has to read them."""
    found, ceilings = Figures.of(walk(WALKS[name])), CEILINGS[name[:3]]
    # Before Python 3.12 each comprehension is a call.
    told = Figures._fields if sys.version_info >= (3, 12) else ("files", "folders")
    higher = [each for each in told if getattr(found, each) > getattr(ceilings, each)]
    assert not higher, f"{found} is above {ceilings}"
