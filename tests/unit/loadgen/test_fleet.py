"""The simulated fleet has realistic values, and is the same for the same seed."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import correlation

from loadgen.traffic.fleet import POWER_STEPS_W, make_fleet

NOON_S = 1_700_000_000.0
DAY = [NOON_S + 60 * minute for minute in range(1440)]


def test_fleet_of_the_same_seed_reports_the_same() -> None:
    """The same seed gives the same values; another seed gives others."""
    first, second, other = (
        [[device.measure(at_s) for at_s in DAY[:50]] for device in make_fleet(20, seed)]
        for seed in (7, 7, 8)
    )
    assert first == second
    assert first != other


def test_fleet_devices_have_names_of_their_own() -> None:
    """All devices have different names."""
    names = [device.name for device in make_fleet(200)]
    assert len(set(names)) == 200
    assert {name.partition("-")[0] for name in names} == {"room", "meter", "door"}


def test_rooms_follow_the_day_and_humidity_goes_against_temperature() -> None:
    """The afternoon is warmer than the night, and humidity falls when it is warm."""
    for device in [each for each in make_fleet(50) if each.name.startswith("room")]:
        values = [device.measure(at_s) for at_s in DAY]
        temperature = [value["temperature"] for value in values]
        humidity = [value["humidity"] for value in values]
        assert correlation(temperature, humidity) < -0.8
        assert 5 < min(temperature) < max(temperature) < 40
        assert 2 < max(temperature) - min(temperature) < 15
        assert 5 <= min(humidity) < max(humidity) <= 98
        steps = [abs(b - a) for a, b in pairwise(temperature)]
        assert max(steps) < 1, "air does not jump"


def test_meters_stay_on_steps_and_doors_are_mostly_shut() -> None:
    """Meters have steps, and doors are open for short times."""
    for device in [each for each in make_fleet(50) if not each.name.startswith("room")]:
        values = [device.measure(NOON_S + second) for second in range(20_000)]
        if device.name.startswith("meter"):
            powers = [value["power"] for value in values]
            assert all(
                any(math.isclose(power, step, rel_tol=0.1) for step in POWER_STEPS_W)
                for power in powers
            )
            assert max(powers) > 10 * min(powers)
        else:
            share = sum(value["door_open"] for value in values) / len(values)
            assert 0.005 < share < 0.3
            assert all(2 < value["battery"] < 3.2 for value in values)
