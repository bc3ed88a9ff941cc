"""The fast way to rows of declared tables: values that come together are encoded together.

What the values of an item become is told by their metrics, as long as no column begins to take
readings. It is found once and kept. So the home of each reading is not asked for.
Promises: each reading has the home that `encode_placed` gives it, and the values of one moment are
one row, also if they are of several items. `encode_placed` does what cannot be done so: where a
column begins, where a metric stands twice in a moment, or where few items have the same metrics.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, repeat
from typing import NamedTuple, TypeVar

from ingest.formats.block_builder import SERIES
from ingest.model.block import PG_EPOCH_US, device_needle, encode_rows
from ingest.model.moments import COLUMNS_MAX
from ingest.model.placed_rows import PlacedRows, RowForm, encode_placed, row_form
from ingest.model.tables import ColumnTable, Homes, Tables

KEPT_BYTES_MAX = 4 * 1024 * 1024  # of all that is kept: some 3,000 tuples of ten metrics
METRICS_MAX = 2 * COLUMNS_MAX  # of an item
KINDS_MAX = 64  # of items of a slice, each with other metrics
FEW_MAX = 50  # items with one value each: to ask for the home of each is faster
PLACED_MAX = 1_000  # values of which the home of each is asked for in one step: at most 4 ms
_ENTRY_BYTES = 600  # of a tuple in the dict, besides its metrics
_METRIC_BYTES = 150  # of a metric in it, besides its characters

T = TypeVar("T")


class PlacedValues(NamedTuple):
    """Values that become a row of a table: its form, what it has of the series, their places.

    Value `places[i]` of the moment has the i-th column of the form.
    """

    form: RowForm
    series: bytes
    places: tuple[int, ...]


class Placing(NamedTuple):
    """What the values of some metrics become. `plain` are the places of those of `readings`."""

    rows: tuple[PlacedValues, ...]
    plain: tuple[int, ...]


def placing_of(metrics: Sequence[str], homes: Homes) -> Placing:
    """Return what the values of these valid metrics become."""
    plain = list[int]()
    rows: dict[tuple[str, str], tuple[ColumnTable, dict[int, int]]] = {}
    for place, metric in enumerate(metrics):
        home = homes.home(metric)
        if home is None:
            plain.append(place)
        else:
            key = home.table.name, home.series
            rows.setdefault(key, (home.table, {}))[1][home.column] = place
    placed = list[PlacedValues]()
    for (_, series), (table, place_of) in rows.items():
        columns = tuple(sorted(place_of))
        places = tuple(place_of[column] for column in columns)
        after = device_needle(series) if table.measurement else b""
        placed.append(PlacedValues(row_form(table, columns), after, places))
    return Placing(tuple(placed), tuple(plain))


class PlacingCache:
    """The placings of tuples of metrics that were asked for before."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Homes, tuple[str, ...]], Placing] = {}
        self._size_bytes = 0

    def of(self, metrics: tuple[str, ...], homes: Homes) -> Placing:
        """Return what the values of these metrics become. Raises KeyError for an invalid one."""
        key = homes, metrics
        try:
            return self._kept[key]
        except KeyError:
            SERIES.afters(metrics)  # they are valid
            if self._size_bytes > KEPT_BYTES_MAX:
                self._kept.clear()
                self._size_bytes = 0
            placing = self._kept[key] = placing_of(metrics, homes)
            characters = sum(map(len, metrics))
            self._size_bytes += _ENTRY_BYTES + 4 * characters + _METRIC_BYTES * len(metrics)
            return placing


PLACINGS = PlacingCache()


class Items(NamedTuple):
    """Values of items, each of one device and time: time, device and metrics of each item.

    `values` and `owners` are those of the first item, then those of the next one. The owner of a
    value is the number of its item in the post.
    """

    times_pg_us: Sequence[int]
    device_ids: list[str]
    metrics: list[tuple[str, ...]]
    values: list[float]
    owners: Sequence[int]

    def alike(self) -> Iterator[Items]:
        """Yield the items with the same metrics together, kind by kind."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for item, metrics in enumerate(self.metrics):
            groups.setdefault(metrics, []).append(item)
        for metrics, group in groups.items():
            places = self.places(group)
            yield Items(
                [self.times_pg_us[item] for item in group],
                [self.device_ids[item] for item in group],
                [metrics] * len(group),
                [self.values[place] for place in places],
                [self.owners[place] for place in places],
            )

    def places(self, items: list[int]) -> list[int]:
        """Return where the values of these items are."""
        if len(self.values) == len(self.metrics):
            return items
        ends = [0, *accumulate(map(len, self.metrics))]
        return [place for item in items for place in range(ends[item], ends[item + 1])]


def place_items(items: Items, tables: Tables) -> tuple[bytes, Sequence[int]]:
    """Encode the values of items, each in its home; return the tuples, and the owner of each.

    Raises KeyError for an invalid name, or if it would take too long.
    """
    times_pg_us, device_ids, metrics, values, owners = items
    oldest_us, newest_us = min(times_pg_us) + PG_EPOCH_US, max(times_pg_us) + PG_EPOCH_US
    if oldest_us == newest_us and device_ids.count(device_ids[0]) == len(device_ids):
        moment = dict(zip(chain.from_iterable(metrics), values, strict=True))
        if len(moment) == len(values) <= METRICS_MAX:
            tuples, order = place_moment(oldest_us, device_ids[0], moment, tables)
            return tuples, [owners[each] for each in order]
    homes = tables.era(oldest_us, newest_us)
    are_few = len(values) == len(metrics) <= FEW_MAX
    if homes and not are_few:
        is_joined = len({*zip(times_pg_us, device_ids, strict=True)}) == len(metrics)
        placed = _placed(items if is_joined else _joined(items), homes)
        if placed is not None:
            return placed
    return _one_by_one(items, tables, homes)


def each_of(column: Iterable[T], counts: Iterable[int]) -> Iterator[T]:
    """Return each element as often as it counts."""
    return chain.from_iterable(map(repeat, column, counts))


def place_moment(
    ts_us: int, device_id: str, values: dict[str, float], tables: Tables
) -> tuple[bytes, Sequence[int]]:
    """Encode the values of one moment, each in its home; return the tuples, and their order.

    Raises KeyError for an invalid name, or if it would take too long.
    """
    homes = tables.era(ts_us, ts_us)
    metrics, numbers, ts_pg_us = tuple(values), [*values.values()], ts_us - PG_EPOCH_US
    placing = PLACINGS.of(metrics, homes) if homes and len(metrics) <= METRICS_MAX else None
    if placing and len(placing.rows) == 1 and not placing.plain:
        ((form, series, places),) = placing.rows
        names = SERIES.needles([device_id])[0] + series
        return form.section(ts_pg_us, names, [numbers[place] for place in places]), places
    item = Items([ts_pg_us], [device_id], [metrics], numbers, range(len(numbers)))
    if placing is None:
        return _one_by_one(item, tables, homes)
    rows = PlacedRows()
    _add(rows, item, placing)
    return rows.encoded()


def _one_by_one(items: Items, tables: Tables, homes: Homes | None) -> tuple[bytes, Sequence[int]]:
    """Do what `place_items` does; the home of each value is asked for, if tables take any."""
    times_pg_us, device_ids, metrics, values, owners = items
    counts = [*map(len, metrics)]
    names = SERIES.all_names([*chain.from_iterable(metrics)], [*each_of(device_ids, counts)])
    all_times = [*each_of(times_pg_us, counts)]
    if homes is not None and not homes:
        return encode_rows(all_times, names, values), owners
    if len(values) > PLACED_MAX:
        raise KeyError(len(values))
    tuples, order = encode_placed(all_times, names, values, tables)
    return tuples, owners if order is None else [owners[each] for each in order]


def _placed(items: Items, homes: Homes) -> tuple[bytes, Sequence[int]] | None:
    """Do what `place_items` does, or return None: the values have to be read one by one."""
    kinds = {*items.metrics}
    if len(kinds) > KINDS_MAX or max(map(len, kinds)) > METRICS_MAX:
        return None
    if any(len({*metrics}) < len(metrics) for metrics in kinds):
        return None  # a metric stands twice in a moment
    placings = {metrics: PLACINGS.of(metrics, homes) for metrics in kinds}
    rows = PlacedRows()
    for alike in [items] if len(kinds) == 1 else items.alike():
        _add(rows, alike, placings[alike.metrics[0]])
    return rows.encoded()


def _add(rows: PlacedRows, items: Items, placing: Placing) -> None:
    """Add items with the same metrics."""
    times_pg_us, device_ids, (metrics, *_), values, owners = items
    needles, count = SERIES.needles(device_ids), len(metrics)
    for form, series, places in placing.rows:
        names = [needle + series for needle in needles] if series else needles
        columns = [values[place::count] for place in places]
        rows.add(form, times_pg_us, names, columns, picked(owners, places, count))
    for place in placing.plain:
        (after,) = SERIES.afters((metrics[place],))
        names = [needle + after for needle in needles]
        rows.plain.add(times_pg_us, names, values[place::count], owners[place::count])


def picked(owners: Sequence[int], places: Sequence[int], count: int) -> Sequence[int]:
    """Return the owners of the values with these places of each item; an item has `count`."""
    if [*places] == [*range(count)]:
        return owners
    return [*chain.from_iterable(zip(*(owners[place::count] for place in places), strict=True))]


def _joined(items: Items) -> Items:
    """Join the items of one moment."""
    found: dict[tuple[int, str], list[int]] = {}
    for item, moment in enumerate(zip(items.times_pg_us, items.device_ids, strict=True)):
        found.setdefault(moment, []).append(item)
    metrics_of = items.metrics.__getitem__
    places = items.places([*chain.from_iterable(found.values())])
    return Items(
        [ts_pg_us for ts_pg_us, _ in found],
        [device_id for _, device_id in found],
        [tuple(chain.from_iterable(map(metrics_of, moment))) for moment in found.values()],
        [items.values[place] for place in places],
        [items.owners[place] for place in places],
    )
