"""Send times follow the shape: their number, their order, the same for the same seed."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.traffic.schedule import Shape, Stretch, burst, constant, moments, ramp, steps

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


@pytest.mark.parametrize(
    "shape", [constant(200), ramp(0, 400, 100), steps([100, 300], 50), burst(100, 300, 10, 5)]
)
def test_poisson_keeps_the_rate_and_scatters_as_poisson_does(shape: Shape) -> None:
    """Number and gaps of 20,000 posts in 100 s have a Poisson distribution, for each shape."""
    found = list(moments(shape, arrivals="poisson", seed=7, within_s=100))
    expected = shape.posts(100)
    assert expected == pytest.approx(20_000, rel=0.01)
    assert abs(len(found) - expected) < 4 * math.sqrt(expected)
    # Measured in posts instead of seconds, the gaps are exponential with mean and deviation 1.
    bent = [shape.posts(each) for each in found[::20]]
    tens = [(after - before) / 20 for before, after in pairwise(bent)]
    mean = sum(tens) / len(tens)
    spread = math.sqrt(sum((each - mean) ** 2 for each in tens) / len(tens))
    assert mean == pytest.approx(1, abs=0.03)
    assert spread == pytest.approx(1 / math.sqrt(20), rel=0.1)
    first_half = sum(each < 50 for each in found)
    assert abs(first_half - shape.posts(50)) < 4 * math.sqrt(shape.posts(50))
