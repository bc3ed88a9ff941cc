"""Send times follow the shape: their number, their order, the same for the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.traffic.schedule import Arrivals, Shape, Stretch, burst, constant, moments, ramp, steps

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


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
@given(shape=shapes, seed=st.integers(0, 99))
def test_same_seed_gives_the_same_moments(arrivals: Arrivals, shape: Shape, seed: int) -> None:
    """The same seed gives the same moments."""
    one = list(islice(moments(shape, arrivals=arrivals, seed=seed), 200))
    assert one == list(islice(moments(shape, arrivals=arrivals, seed=seed), 200))
    assert one == sorted(one)


def test_other_seed_gives_other_moments() -> None:
    """Another seed gives other moments."""
    one, other = (
        list(islice(moments(constant(10), arrivals="poisson", seed=seed), 5)) for seed in (1, 2)
    )
    assert one != other


def test_constant_rate_is_evenly_spaced_without_drift() -> None:
    """The millionth post of 1,000 a second comes at 1,000 s, exactly."""
    found = list(islice(moments(constant(1000)), 1_000_001))
    assert found[0] == 0
    assert found[1] == pytest.approx(0.001)
    assert found[1_000_000] == pytest.approx(1000, rel=1e-12)


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


MOMENT_S = 2**-10


def test_shapes_have_the_rates_that_they_say() -> None:
    """Each shape has its rates at some typical moments."""
    for shape, moments_s, rates in (
        (constant(5), (0, 1e6), (5, 5)),
        (ramp(10, 30, 10), (0, 5, 10, 1e6), (10, 20, 30, 30)),
        (steps([1, 2, 3], 10), (0, 9.9, 10, 25, 1e6), (1, 1, 2, 3, 3)),
        (burst(1, 9, every_s=10, for_s=2), (0, 7.9, 8, 9.9, 10, 18.5), (1, 1, 9, 9, 1, 9)),
        (Shape((Stretch(1, 4, 4),)), (2,), (0,)),
    ):
        found = [
            (shape.posts(at_s + 2 * MOMENT_S) - shape.posts(at_s + MOMENT_S)) / MOMENT_S
            for at_s in moments_s
        ]
        assert found == pytest.approx(rates, abs=0.01)
    assert Stretch(math.inf, 0, 0).posts == 0


def test_pause_within_a_shape_sends_nothing() -> None:
    """In a time of rate 0 no post is sent; later posts are in time."""
    found = list(moments(steps([2, 0, 2], 1), within_s=3))
    assert found == [0, 0.5, 2, 2.5]
    assert list(moments(steps([2, 0], 1))) == [0, 0.5]  # rate 0 for ever: the end


def test_falling_ramp_to_nothing_ends() -> None:
    """A ramp to 0 ends after its last post (a rounding must not make the root negative)."""
    found = list(moments(ramp(100, 0, 2)))
    assert len(found) == 100
    assert found[-1] < 2
    fall = Stretch(29, 116.2351654099891, 0)  # found by trying: its root would be negative
    assert fall.moment(math.nextafter(fall.posts, 0)) == pytest.approx(29)


@pytest.mark.parametrize(
    "make",
    [
        lambda: constant(0),
        lambda: constant(-1),
        lambda: constant(math.nan),
        lambda: constant(math.inf),
        lambda: ramp(1, -1, 10),
        lambda: ramp(1, 2, 0),
        lambda: ramp(1, 2, math.inf),
        lambda: steps([], 1),
        lambda: steps([0, 0], 1),
        lambda: steps([1, 2], -1),
        lambda: burst(0, 0, 10, 1),
        lambda: burst(1, 2, 10, 10),
        lambda: burst(1, 2, 10, 0),
        lambda: burst(1, 2, math.nan, 1),
    ],
)
def test_shape_that_cannot_be_is_refused(make: Callable[[], Shape]) -> None:
    """Impossible shapes are errors before a post is sent."""
    with pytest.raises(ValueError, match=r"rate|time|burst|ends"):
        make()
