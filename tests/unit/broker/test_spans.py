"""Spans of places: the same answers as a plain set gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ingest.broker.spans import Span, Spans

SPANS = st.tuples(st.integers(1, 40), st.integers(0, 8)).map(lambda of: (of[0], of[0] + of[1]))


@given(st.lists(SPANS), st.integers(1, 50), st.integers(0, 50))
def test_spans_hold_what_a_set_holds(added: list[tuple[int, int]], first: int, last: int) -> None:
    """Neighbours become one span, and the gaps are what is missing."""
    spans, model = Spans(), set[int]()
    for each in added:
        spans.add(*each)
        model.update(range(each[0], each[1] + 1))
        assert [place for span in spans for place in range(span.first, span.last + 1)] == sorted(
            model
        )
        assert all(a.last + 1 < b.first for a, b in zip(list(spans), list(spans)[1:], strict=False))
    assert spans.last == max(model, default=0)
    assert all((place in spans) == (place in model) for place in range(60))
    missing = [place for gap in spans.gaps(first, last) for place in range(gap.first, gap.last + 1)]
    assert missing == [place for place in range(first, last + 1) if place not in model]
    for begin in (0, first):
        end = next(place for place in range(begin, 99) if place + 1 not in model)
        assert spans.end_of(begin) == end


def test_span_says_what_it_is() -> None:
    """For people: one place, or the first and the last."""
    assert [str(each) for each in (Span(3, 3), Span(3, 5))] == ["3", "3 to 5"]
    assert Span(3, 5).places == 3
