"""Send times follow the shape: their number, their order, the same for the same seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.traffic.schedule import Shape, Stretch, moments

rates = st.just(0.0) | st.floats(1, 500)
stretches = st.builds(Stretch, st.floats(0.01, 5), rates, rates)
shapes = st.builds(
    Shape,
    st.lists(stretches, min_size=1, max_size=4)
    .filter(lambda made: any(each.posts > 0 for each in made))
    .map(tuple),
    st.booleans(),
)


@given(shapes, st.floats(0.1, 10))
def test_number_of_posts_up_to_any_moment_is_that_of_the_shape(
    shape: Shape, within_s: float
) -> None:
    """With constant arrivals the number of posts is right at every moment, to within one."""
    found = list(moments(shape, within_s=within_s))
    assert found == sorted(found)
    assert all(0 <= each < within_s for each in found)
    assert abs(len(found) - shape.posts(within_s)) <= 1 + 1e-6
    for number, at_s in list(enumerate(found))[:: max(1, len(found) // 20)]:
        assert shape.posts(at_s) == pytest.approx(number, abs=1e-3)
