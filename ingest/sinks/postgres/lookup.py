"""Reads the table for the page: last readings, curves, devices and their last values.

Promises: one question at a time, on a connection of its own that cannot write. A question waits at
most LOOKUP_S_MAX for those before it. Then the server stops it after LOOKUP_S_MAX, and uses one
process for it. So the page cannot take the database from the writers.
A metric of a declared table may also stand in `readings`, as before its time `since`. So both are
asked, and declared tables by column_lookup.py.
Does not: change anything in the database, or need the index for devices. The key begins with `ts`.
So without that index, a question for one device reads the readings of all devices in that time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from ingest.model.errors import Refused
from ingest.model.tables import Tables
from ingest.sinks.postgres.checked_connection import KnownServer
from ingest.sinks.postgres.column_lookup import (
    RECENT_ROWS,
    US,
    ColumnLookup,
    Row,
)
from ingest.sinks.postgres.connection import (
    DRIVER_ERRORS,
    Connection,
    DatabaseUrl,
    Expired,
    OneConnection,
    PostgresError,
    Record,
    connect,
    deadline,
    text_of,
)
from ingest.sinks.postgres.schema import TargetTable
from ingest.system.clock import rfc3339_or_us

LOOKUP_S_MAX = 2.0
WAITING_MAX = 8
READINGS_MAX = 500
BUCKETS_MAX = 2_000
METRICS_MAX = 200  # of one device
SAMPLE_ROWS = 200_000  # newest rows of the last hour, for `metrics_together`
INDEX_ADVICE = (
    "the table has no index for devices: `{run} schema apply --device-index` makes it "
    "(50 to 61 bytes a row); a small table needs none"
)
_QUERY_CANCELED = "57014"
_INSUFFICIENT_PRIVILEGE, _DATA = "42501", "22"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SESSION = """set default_transaction_read_only = on; set max_parallel_workers_per_gather = 0;
set jit = off"""


def mean(total: str, number: str) -> str:
    """Return the mean in SQL: of all `total` that are not beyond 1e290, by their `number`.

    The sum of larger ones, and a quotient that underflows, would be an error of the server.
    """
    counts = f"filter (where abs({total}) <= 1e290)"
    sum_, number = f"sum({total}) {counts}", f"({number} {counts})::float8"
    return f"""case when 2 * abs({sum_}) <= {number} * '5e-324'::float8 then 0
        else {sum_} / {number} end"""


# Whether there is an index (device_id, metric, ts, ..), and whether it is in the order of "C".
_INDEX = """
select coalesce(bool_or(true), false) as there,
       coalesce(bool_or(i.indcollation[0] = 'pg_catalog."C"'::regcollation), false) as in_c_order
from pg_index i where i.indrelid = to_regclass($1) and i.indisvalid and i.indpred is null
  and (select array_agg(a.attname::text order by n) from generate_series(0, 2) n
       join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[n]
      ) = $2::text[]"""

_WITHIN = (
    "ts >= coalesce($3::timestamptz, '-infinity') and ts < coalesce($4::timestamptz, 'infinity')"
)
# In the questions the table has this name. It is replaced by TargetTable.source: see `_fetch`.
_SOURCE = ":readings"
_ALSO = ":also"  # rows of a declared table, in a curve
# The metrics of a device, one search in the index for each.
_METRICS = f"""
(select r.metric from {_SOURCE} r where r.device_id = {{device}} order by r.metric limit 1)
union all
select (select r.metric from {_SOURCE} r where r.device_id = {{device}} and r.metric > m.metric
        order by r.metric limit 1) from m where m.metric is not null"""  # noqa: S608
_METRICS_OF = f"""with recursive m (metric) as ({_METRICS.format(device="$1")})
select metric from m where metric is not null limit {METRICS_MAX}"""  # noqa: S608
# Rows are compared as a whole, so that only the index for devices fits. With a condition for each
# column the planner may take the key, which begins with `ts`: 300 ms instead of 1 ms (measured).
_OF_INDEX = "(device_id, metric, ts) >= ({device}, m.metric, {least})"
_READINGS = f"""
select {US.format("ts")}, device_id, metric, value from {_SOURCE} r
where device_id = $1 and metric = coalesce($5, metric) and {_WITHIN}
order by ts desc limit $2"""  # noqa: S608
_READINGS_BY_INDEX = f"""
select {US.format("r.ts")}, device_id, r.metric, r.value from unnest($5::text[]) m (metric)
cross join lateral (
    select ts, device_id, metric, value from {_SOURCE} s
    where {_OF_INDEX.format(device="$1", least="coalesce($3::timestamptz, '-infinity')")}
      and (device_id, metric, ts) < ($1, m.metric, coalesce($4::timestamptz, 'infinity'))
    order by device_id desc, metric desc, ts desc limit $2) r
order by r.ts desc limit $2"""  # noqa: S608
_NEWEST = f"""
select {US.format("ts")}, device_id, metric, value from {_SOURCE} r order by ts desc limit $1"""  # noqa: S608
_CURVE = f"""
select {US.format("bucket")}, min, mean, max, count from (
    select date_bin($5::interval, ts, 'epoch'::timestamptz) as bucket,
           min(value), max(value), count(*),
           {mean("value", "count(*)")} as mean
    from (select ts, value from {_SOURCE} r
          where device_id = $1 and metric = $2 and {_WITHIN}{_ALSO}) r group by 1) b
order by bucket"""  # noqa: S608
_DEVICES = f"""
with recursive d (device_id) as (
    (select device_id from {_SOURCE} r where device_id > $1 and device_id >= $2
     order by device_id limit 1)
    union all
    select (select r.device_id from {_SOURCE} r where r.device_id > d.device_id
            order by r.device_id limit 1) from d where starts_with(d.device_id, $2))
select device_id from d where starts_with(device_id, $2) limit $3"""  # noqa: S608
_RECENT_DEVICES = f"""
select device_id from (
    select device_id from {_SOURCE} r order by ts desc limit {RECENT_ROWS}) recent
where device_id collate "C" > $1 and starts_with(device_id, $2)
group by 1 order by device_id collate "C" limit $3"""  # noqa: S608
_LAST_BY_INDEX = f"""
select d.device_id, {US.format("r.ts")}, r.metric, r.value
from unnest($1::text[]) d (device_id) cross join lateral (
    with recursive m (metric) as ({_METRICS.format(device="d.device_id")})
    select l.ts, l.metric, l.value from (select metric from m where metric is not null limit 20) m
    cross join lateral (select ts, metric, value from {_SOURCE} s
        where {_OF_INDEX.format(device="d.device_id", least="'-infinity'::timestamptz")}
          and (device_id, metric, ts) <= (d.device_id, m.metric, 'infinity')
        order by device_id desc, metric desc, ts desc limit 1) l
    order by l.ts desc limit 1) r"""  # noqa: S608
_LAST_RECENT = f"""
select distinct on (device_id) device_id, {US.format("ts")}, metric, value
from (select * from {_SOURCE} r order by ts desc limit {RECENT_ROWS}) recent
where device_id = any($1::text[]) order by device_id, ts desc"""  # noqa: S608

# How many devices and times have the same metrics.
_TOGETHER = f"""
with sample as (
    select ts, device_id, metric from {_SOURCE} r
    where ts > now() - interval '1 hour' and ts <= now() order by ts desc limit {SAMPLE_ROWS}),
moments as (
    select array_agg(distinct metric) as metrics, ts from sample
    group by device_id, ts)
select metrics, count(*)::int4 as moments, extract(epoch from now() - min(ts))::float8 as age_s
from moments group by metrics"""  # noqa: S608

T = TypeVar("T")
# A curve from rollups, of the table, the device and metric, the times and the step in microseconds.
# None: the readings must be asked.
RolledCurve = Callable[
    [Connection, TargetTable, tuple[str, str], tuple[int, int], int],
    Awaitable[list[Record] | None],
]


class Between(NamedTuple):
    """From when to when, in Unix microseconds; None: no bound. The end does not belong to it."""

    from_us: int | None = None
    to_us: int | None = None


EVER = Between()


class Lookup(OneConnection):
    """Reads in the database of `database_url`. It connects when first needed. `known`: the table.

    `tables` are the declared ones. `run` is how a person types a command of the service, for
    `index_advice`. `rolled_curve` answers from rollups, where there are any.
    Times in answers are RFC 3339, or Unix microseconds if the year is not between 1 and 9999. Every
    question may raise Refused: `busy`, `too_slow`, `internal` or `database_away`.
    """

    def __init__(
        self,
        database_url: DatabaseUrl,
        known: KnownServer | None = None,
        *,
        tables: Tables,
        run: str = "ingest",
        rolled_curve: RolledCurve | None = None,
    ) -> None:
        super().__init__()
        self.index_advice = INDEX_ADVICE.format(run=run)
        self._database_url = database_url
        self._known = known or KnownServer()
        self._rolled_curve = rolled_curve
        self._columns = ColumnLookup(tables)
        self._queue = asyncio.Lock()
        self._waiting = 0
        self._has_index = self._in_c_order = False

    async def last_readings(
        self, device_id: str, count: int, metric: str | None = None, within: Between = EVER
    ) -> dict[str, Any]:
        """Return the `readings` of a device, newest `ts` first, and its `metrics`.

        Without the index, `metrics` are those of the readings returned.
        """
        count = min(count, READINGS_MAX)

        async def ask(connection: Connection) -> dict[str, Any]:
            span = (_moment(within.from_us), _moment(within.to_us))
            columns = self._columns
            if metric is None:
                also = await columns.of_device(connection, device_id, count, span)
            else:
                also = await columns.of_metric(connection, device_id, metric, count, span)
            between = (device_id, count, *span)
            if not self._has_index:
                rows = await self._fetch(connection, _READINGS, *between, metric)
                newest = _newest(rows, also, count)
                metrics = {row["metric"] for row in newest}
            else:
                found = await self._fetch(connection, _METRICS_OF, device_id)
                metrics = {row["metric"] for row in found}
                wanted = list(metrics) if metric is None else [metric]
                rows = await self._fetch(connection, _READINGS_BY_INDEX, *between, wanted)
                newest = _newest(rows, also, count)
                metrics |= await columns.metrics(connection, device_id, READINGS_MAX)
            return {"readings": _readings(newest), "metrics": sorted(metrics)}

        return {**await self._answer(ask), "device_index": self._has_index}

    async def newest(self, count: int) -> dict[str, Any]:
        """Return the newest `readings` of all devices, newest `ts` first."""

        async def ask(connection: Connection) -> list[dict[str, Any]]:
            most = min(count, READINGS_MAX)
            rows = await self._fetch(connection, _NEWEST, most)
            newest = _newest(rows, await self._columns.newest(connection, most), most)
            return [
                {"device_id": row["device_id"], **each}
                for row, each in zip(newest, _readings(newest), strict=True)
            ]

        return {"readings": await self._answer(ask), "device_index": self._has_index}

    async def curve(
        self, device_id: str, metric: str, within: Between, step_us: int
    ) -> dict[str, Any]:
        """Return the `buckets` of `step_us` in which the device has readings, oldest first.

        Each is [start in Unix seconds, least, mean, greatest, number]. A bucket starts at a
        multiple of the step since 1970. Values beyond 1e290 do not count in the mean. `rollups`:
        they are from rollups, as far as there are any; then the step is of whole hours.
        """

        async def ask(connection: Connection) -> tuple[bool, list[Record]]:
            from_us, to_us = within.from_us, within.to_us
            also, _ = self._columns.rows_of(metric)
            from_rollups = None if also else self._rolled_curve  # they have no such rows
            if from_rollups is not None and from_us is not None and to_us is not None:
                series, span = (device_id, metric), (from_us, to_us)
                rolled = await from_rollups(connection, self._known.target, series, span, step_us)
                if rolled is not None:
                    return True, rolled
            between = (_moment(within.from_us), _moment(within.to_us))
            step = timedelta(microseconds=step_us)
            values = (device_id, metric, *between, step)
            also = f"\nunion all {also}" if also else ""
            return False, await self._fetch(connection, _CURVE, *values, also=also)

        rollups, rows = await self._answer(ask)
        buckets = [[r["ts_us"] / 1e6, r["min"], r["mean"], r["max"], r["count"]] for r in rows]
        return {"buckets": buckets, "rollups": rollups, "device_index": self._has_index}

    async def devices(
        self, names: Sequence[str], prefix: str, after: str, count: int
    ) -> dict[str, Any]:
        """Return `last`, the last reading of devices, and `devices`, names of more of them.

        `devices` are the first `count` of the table that begin with `prefix` and come after
        `after`, in the order of their bytes; these have a last reading too. Without the index only
        the newest RECENT_ROWS of the table are searched.
        """

        async def ask(connection: Connection) -> tuple[list[str], list[Row]]:
            by_name = _DEVICES if self._in_c_order else _RECENT_DEVICES
            rows = await self._fetch(connection, by_name, after, prefix, count)
            for each in self._columns.there:
                question = (_DEVICES if each.by_device else _RECENT_DEVICES).replace(
                    _SOURCE, each.name
                )
                rows += await connection.fetch(question, after, prefix, count)
            more = sorted({row["device_id"] for row in rows})[:count]
            wanted = sorted({*names, *more})[:count]
            question = _LAST_BY_INDEX if self._has_index else _LAST_RECENT
            found = await self._fetch(connection, question, wanted)
            return more, [*found, *await self._columns.last_of(connection, wanted)]

        more, found = await self._answer(ask)
        rows = sorted(found, key=itemgetter("ts_us"))
        last = {row["device_id"]: each for row, each in zip(rows, _readings(rows), strict=True)}
        return {"devices": more, "last": last, "device_index": self._has_index}

    # One question

    async def _answer(self, ask: Callable[[Connection], Awaitable[T]]) -> T:
        if self._waiting >= WAITING_MAX:
            raise Refused("busy", "too many ask for readings at once", retry_after_s=2)
        self._waiting += 1
        try:
            await self._wait_in_queue()
            try:
                return await self._ask(ask)
            finally:
                self._queue.release()
        finally:
            self._waiting -= 1

    async def _wait_in_queue(self) -> None:
        """Wait for the questions before this one, which may wait for a database that is away."""
        try:
            async with asyncio.timeout(LOOKUP_S_MAX):
                await self._queue.acquire()
        except TimeoutError as error:
            raise Refused("busy", "others wait for the database too", retry_after_s=2) from error

    async def _ask(self, ask: Callable[[Connection], Awaitable[T]]) -> T:
        sound = False
        try:
            async with asyncio.timeout(LOOKUP_S_MAX):
                connection = await self._open()
            with deadline(connection, LOOKUP_S_MAX + 1):
                await self._look_for_index(connection)
                await self._columns.look(connection, self._known.target.schema)
                answer = await ask(connection)
            sound = True
        except PostgresError as error:
            if error.sqlstate == _QUERY_CANCELED:
                sound = True
                advice = "ask for a shorter time, or set `rollups`"
                if not self._has_index:
                    advice = self.index_advice
                why = f"there was no answer within {LOOKUP_S_MAX:g} s; {advice}"
                raise Refused("too_slow", why) from error
            code, why = "database_away", "the database does not answer the question"
            if error.sqlstate == _INSUFFICIENT_PRIVILEGE:
                why = "the role of the service may not read the table: SELECT is not granted"
            elif error.sqlstate.startswith(_DATA):
                code, why = "internal", f"the database cannot compute this: {text_of(error)}"
            raise Refused(code, why) from error
        except (Expired, TimeoutError) as error:  # not even the error that it takes too long
            raise Refused("database_away", "the database does not answer") from error
        except (*DRIVER_ERRORS, ValueError) as error:
            raise Refused("database_away", "the database cannot be reached") from error
        finally:
            if not sound:
                self.drop()
        return answer

    async def _fetch(
        self, connection: Connection, question: str, *values: Any, also: str = ""
    ) -> list[Record]:
        """Ask about the table that is written to, and no other. `also`: rows that a curve has."""
        question = question.replace(_SOURCE, self._known.target.source).replace(_ALSO, also)
        rows: list[Record] = await connection.fetch(question, *values)
        return rows

    async def _look_for_index(self, connection: Connection) -> None:
        """Look each time: an operator may make it or drop it, and this takes less than 1 ms."""
        target = self._known.target
        columns = (target.device_id, target.metric, target.ts)
        (found,) = await connection.fetch(_INDEX, target.name, columns)
        self._has_index, self._in_c_order = found["there"], found["in_c_order"]

    async def _open(self) -> Connection:
        if self.connection is None or not self.is_open:
            self.connection = await connect(
                self._database_url(),
                name="iot-ingest dashboard",
                statement_s_max=LOOKUP_S_MAX,
                lock_s_max=1.0,
                within_s=LOOKUP_S_MAX,
            )
            await self.connection.execute(_SESSION)
        return self.connection


def _newest(rows: Sequence[Row], also: Sequence[Row], count: int) -> list[Row]:
    """Return the newest readings of both, newest first."""
    return sorted([*rows, *also], key=itemgetter("ts_us"), reverse=True)[:count]


async def metrics_together(connection: Connection, target: TargetTable) -> list[Record]:
    """Return which `metrics` a device had at one time, the number of such `moments`, their `age_s`.

    Of the newest readings of the last hour. The driver's errors pass through.
    """
    rows: list[Record] = await connection.fetch(_TOGETHER.replace(_SOURCE, target.source))
    return rows


def _readings(rows: Sequence[Row]) -> list[dict[str, Any]]:
    return [
        {"ts": rfc3339_or_us(row["ts_us"]), "metric": row["metric"], "value": row["value"]}
        for row in rows
    ]


def _moment(us: int | None) -> datetime | None:
    return None if us is None else _EPOCH + timedelta(microseconds=us)
