"""Posts of several values of one time, as Telegraf and devices send them, for tables with columns.

The tables of columns.toml take all of them. Bodies are made of texts that are ready: to draw each
number would take longer than to store it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

from ingest.config.declared_tables import PRESETS, declared_tables
from loadgen.traffic.post import compress

TABLES = Path(__file__).parent / "columns.toml"
LEVEL = 6  # of gzip
HOSTS_A_POST = 100
# Of a host: its lines, as Telegraf sends them. `system` is two lines of one time.
_SYSTEM = PRESETS["telegraf_system"]["fields"]
_LINES = (
    *((f"cpu,cpu=cpu{cpu}", PRESETS["telegraf_cpu"]["fields"]) for cpu in range(4)),
    ("mem", PRESETS["telegraf_mem"]["fields"]),
    *((f"disk,path=/{disk}", PRESETS["telegraf_disk"]["fields"]) for disk in ("", "home")),
    ("net,interface=eth0", PRESETS["telegraf_net"]["fields"]),
    ("system", [each for each in _SYSTEM if each != "uptime"]),
    ("system", ["uptime"]),
    ("processes", PRESETS["telegraf_processes"]["fields"]),
)
_FRACTIONS = ("usage_", "load", "used_percent", "inodes_used_percent", "available_percent")
_METRICS = next(each.columns for each in declared_tables(str(TABLES), "") if each.name == "climate")
_TEXTS = 97  # different ones of each line


class Mixed(NamedTuple):
    """Posts of Telegraf for many hosts, with all lines of a host one after the other."""

    gzip: bool = True
    media_type: str = "text/plain"

    @property
    def rows(self) -> int:
        """The readings of a post."""
        return HOSTS_A_POST * sum(len(fields) for _, fields in _LINES)

    def body(self, hosts: int, number: int, first_us: int) -> bytes:
        """Return post `number` of so many hosts; the first round has the time `first_us`."""
        lines = []
        for host in range(number * HOSTS_A_POST, (number + 1) * HOSTS_A_POST):
            rounds, name = divmod(host, hosts)
            end = f"{first_us + rounds}\n"
            lines += [f"{key}{name:04d} {text} {end}" for key, text in _of_host(host % _TEXTS)]
        return compress("".join(lines).encode(), LEVEL)


@cache
def _of_host(variant: int) -> list[tuple[str, str]]:
    """Return the begin of each line of a host, up to its number, and the fields."""
    return [
        (
            f"{key},host=host-",
            ",".join(
                f"{field}={_number(variant, at)}"
                if field.startswith(_FRACTIONS)
                else f"{field}={(variant * 7_919 + at * 104_729) ** 2 % 10**10}i"
                for at, field in enumerate(fields)
            ),
        )
        for key, fields in _LINES
    ]


def _number(variant: int, at: int) -> str:
    return f"{(variant * 37 + at * 911) % 10_000 / 100:.2f}"


class Values(NamedTuple):
    """Posts of items of `values`; or, for other programs, of the same as lines."""

    items: int
    metrics: int
    as_lines: bool = False
    gzip: bool = False

    @property
    def media_type(self) -> str:
        """What the header says."""
        return "text/plain" if self.as_lines else "application/json"

    @property
    def rows(self) -> int:
        """The readings of a post."""
        return self.items * self.metrics

    def body(self, devices: int, number: int, first_us: int) -> bytes:
        """Return post `number` of so many devices; each item has a time of its own."""
        texts = _texts(self.metrics, self.as_lines)
        items = [
            texts[at % _TEXTS] % (at % devices, first_us + at)
            for at in range(number * self.items, (number + 1) * self.items)
        ]
        if self.as_lines:
            return "\n".join(items).encode()
        return (items[0] if len(items) == 1 else f"[{','.join(items)}]").encode()


@cache
def _texts(metrics: int, as_lines: bool) -> list[str]:
    """Return items with a place for the device and the time."""
    item, value = '{"device_id":"device-%%03d","values":{%s},"ts":%%d}', '"%s":%s'
    if as_lines:
        item, value = "climate,device_id=device-%%03d %s %%d", "%s=%s"
    return [
        item
        % ",".join(
            value % (name, _number(variant, at)) for at, name in enumerate(_METRICS[:metrics])
        )
        for variant in range(_TEXTS)
    ]


MIXED = "telegraf_mixed"
VALUES = {
    f"values_{metrics}_{items}": Values(items, metrics) for metrics in (4, 10) for items in (1, 100)
}
# By form of open_loop.Load. What other programs get of VALUES is the same form with `_lines`.
FORMS: dict[str, Mixed | Values] = {
    MIXED: Mixed(),
    **VALUES,
    **{f"{name}_lines": each._replace(as_lines=True) for name, each in VALUES.items()},
}
