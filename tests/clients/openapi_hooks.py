"""What schemathesis is told besides the document: a check, and what line protocol looks like."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import strategies as st

_names = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=9)
_values = st.one_of(
    st.floats().map(repr),
    st.integers().map("{}i".format),
    st.booleans().map(str),
    _names.map('"{}"'.format),
    _names,
)
_times = st.one_of(st.just(""), st.integers().map(" {}".format), _names)
_lines = st.builds("{},device={} {}={}{}".format, _names, _names, _names, _values, _times)
_bodies = st.lists(st.one_of(_lines, _names), max_size=6).map("\n".join)
schemathesis.openapi.media_type("text/plain", _bodies)


@schemathesis.check
def only_503(
    _context: schemathesis.CheckContext,
    response: schemathesis.Response,
    _case: schemathesis.Case,
) -> None:
    """Fail for each fault of the service: 503 is the only status above 499 that it may answer."""
    assert response.status_code < 500 or response.status_code == 503, response.status_code


@schemathesis.hook
def map_body(_context: schemathesis.HookContext, body: Any) -> Any:
    """Give half of the items a time that is in the allowed range."""
    for at, item in enumerate(body if isinstance(body, list) else [body]):
        if isinstance(item, dict) and isinstance(item.get("ts"), int | float) and at % 2 == 0:
            item["ts"] = 1_750_000_000 + len(item)
    return body
