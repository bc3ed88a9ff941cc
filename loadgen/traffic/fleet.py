"""A simulated fleet: devices with values like those of real rooms, meters and doors.

Promises: the same seed gives the same fleet and, for the same moments, the same values. Pure: no
clock, no network. Three in five devices measure the climate of a room, one the power of a machine,
one watches a door.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod

DAY_S = 86_400.0
Values = dict[str, float | bool]

# The steps of a machine's consumption (standby, fan, pump, heater, all), in watts.
POWER_STEPS_W = (3.0, 60.0, 400.0, 1_200.0, 2_050.0)


class Device(ABC):
    """One device. Calls of `measure` must have growing moments."""

    def __init__(self, name: str, seed: str) -> None:
        self.name = name
        self._random = random.Random(seed)

    @abstractmethod
    def measure(self, at_s: float) -> Values:
        """Return its values at `at_s` (Unix seconds), by metric."""


class Climate(Device):
    """Temperature follows the day; humidity falls when it rises, for the same water in the air."""

    def __init__(self, name: str, seed: str) -> None:
        super().__init__(name, seed)
        self._mean_c = self._random.uniform(18, 23)
        self._swing_c = self._random.uniform(1.5, 5)
        self._warmest_s = self._random.gauss(15.5, 0.7) * 3600
        self._mean_percent = self._random.uniform(40, 55)
        self._draught_c = 0.0

    def measure(self, at_s: float) -> Values:
        """Return temperature in degrees Celsius and relative humidity in percent."""
        draw = self._random.gauss
        self._draught_c = 0.95 * self._draught_c + draw(0, 0.05)
        day = math.cos(2 * math.pi * (at_s - self._warmest_s) / DAY_S)
        above_mean_c = self._swing_c * day + self._draught_c
        humidity = self._mean_percent - 2.6 * above_mean_c + draw(0, 0.3)
        return {
            "temperature": round(self._mean_c + above_mean_c + draw(0, 0.03), 2),
            "humidity": round(min(max(humidity, 5), 98), 1),
        }


class Meter(Device):
    """Power stays on a step for minutes, then changes; the voltage sags under load."""

    def __init__(self, name: str, seed: str) -> None:
        super().__init__(name, seed)
        self._step_w = self._random.choice(POWER_STEPS_W)
        self._until_s = 0.0

    def measure(self, at_s: float) -> Values:
        """Return power in watts and voltage in volts."""
        draw = self._random
        if at_s >= self._until_s:
            self._step_w = draw.choice(POWER_STEPS_W)
            self._until_s = at_s + draw.expovariate(1 / 180)
        power_w = self._step_w * draw.gauss(1, 0.01)
        return {
            "power": round(power_w, 1),
            "voltage": round(231.5 - power_w / 900 + draw.gauss(0, 0.2), 1),
        }


class Contact(Device):
    """Shut most of the time, open for some seconds; its battery empties over a year."""

    def __init__(self, name: str, seed: str) -> None:
        super().__init__(name, seed)
        self._open = False
        self._until_s = 0.0
        self._age_days = self._random.uniform(0, 300)
        self._first_s: float | None = None

    def measure(self, at_s: float) -> Values:
        """Return whether it is open, and the battery's voltage in volts."""
        draw = self._random
        if self._first_s is None:
            self._first_s = at_s
            self._until_s = at_s + draw.expovariate(1 / 60)
        elif at_s >= self._until_s:
            self._open = not self._open
            self._until_s = at_s + draw.expovariate(1 / (8 if self._open else 120))
        age_days = self._age_days + (at_s - self._first_s) / DAY_S
        return {
            "door_open": self._open,
            "battery": round(3.05 - 0.0012 * age_days + draw.gauss(0, 0.003), 3),
        }


_KINDS: tuple[tuple[type[Device], str], ...] = (
    (Climate, "room"),
    (Climate, "room"),
    (Climate, "room"),
    (Meter, "meter"),
    (Contact, "door"),
)


def make_fleet(devices: int, seed: int = 1) -> list[Device]:
    """Return devices with the names `room-0001`, `meter-0004` and so on."""
    fleet: list[Device] = []
    for number in range(devices):
        kind, word = _KINDS[number % len(_KINDS)]
        name = f"{word}-{number + 1:04}"
        fleet.append(kind(name, f"{seed} {name}"))
    return fleet
