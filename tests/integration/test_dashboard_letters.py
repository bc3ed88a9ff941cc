"""Letters and devices over the dashboard, with a real folder and database."""

from __future__ import annotations

import asyncio
import itertools
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from ingest.admin.dashboard import letters as dashboard_letters
from ingest.dead_letters.folder.segments import live_letters, try_replay_lock
from ingest.dead_letters.store import LetterStore, Newest, Selection, newest
from ingest.model.errors import Refused
from ingest.model.reading import Letter, Reading
from ingest.model.tables import NO_TABLES
from ingest.sinks.postgres import lookup as lookup_postgres
from ingest.sinks.postgres.lookup import INDEX_ADVICE, Between, Lookup
from ingest.sinks.postgres.schema import apply
from tests.support.dashboard import Rig, running
from tests.support.letters import LetterFiles, drained, invalid, keep, read

GOOD_LATE = b'{"device_id":"mended","metric":"m","ts":1750000000,"value":1}'
LIST = "/dead-letters"


async def ids(rig: Rig, query: str = "") -> list[str]:
    """Return the ids that are listed."""
    return [each["id"] for each in (await rig.ask(LIST + query)).document["letters"]]


async def test_list_is_newest_first_filtered_short_and_bounded(tmp_path: Path) -> None:
    """Reason, code and device select. A long original is cut in the list, and whole by id."""
    long = b'{"device_id":"long","x":"' + b"y" * 2_000 + b'"}'
    async with running(tmp_path) as rig:
        await rig.dead_letters.append([invalid(long, code="unknown_field")])
        await rig.dead_letters.append(drained(3, device="dev"))
        await rig.dead_letters.append([invalid(b"\xff\xfe", code="not_an_object")])
        listed = (await rig.ask(LIST)).document
        assert listed["looked_at_all"]
        codes = [each["code"] for each in listed["letters"]]
        assert codes == ["not_an_object", "", "", "", "unknown_field"]
        assert listed["letters"][0]["original"] == "base64://4="
        last = listed["letters"][-1]
        assert (len(last["original"]), last["cut"], last["device"]) == (300, True, "long")
        full = (await rig.ask(f"{LIST}?id={last['id']}")).document
        assert full["original"] == long.decode()
        assert len(await ids(rig, "?reason=drained")) == 3
        assert len(await ids(rig, "?device=long")) == 1
        assert len(await ids(rig, "?device_prefix=de")) == 3
        assert await ids(rig, "?device=lon*") == []
        assert len(await ids(rig, "?code=not_an_object&reason=invalid")) == 1
        assert len(await ids(rig, "?limit=2")) == 2
        assert not (await rig.ask(LIST + "?limit=2")).document["looked_at_all"]


async def test_list_of_a_large_file_looks_at_its_end_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest are found without reading all files; the answer says that there may be more."""
    monkeypatch.setattr(dashboard_letters, "LOOK_BYTES_MAX", 5_000)
    async with running(tmp_path) as rig:
        await rig.dead_letters.append([invalid(b'{"device_id":"oldest"}'), *drained(100)])
        found = (await rig.ask(LIST)).document
        assert 5 < len(found["letters"]) < 30
        assert not found["looked_at_all"]
        assert await ids(rig, "?device=oldest") == []
        newest = read(tmp_path)[-1].reading
        assert newest is not None
        assert found["letters"][0]["reading"]["value"] == newest.value


async def test_many_who_look_look_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests at the same time read one after another, so the event loop is not blocked."""
    at_once: list[int] = []
    running_now = itertools.count()

    async def watched(
        store: LetterStore, where: Selection, count: int, *, bytes_max: int
    ) -> Newest:
        began = next(running_now)
        found = await newest(store, where, count, bytes_max=bytes_max)
        at_once.append(next(running_now) - began)  # 1: nobody began in between
        return found

    monkeypatch.setattr(dashboard_letters, "newest", watched)
    async with running(tmp_path) as rig:
        await rig.dead_letters.append(drained(300))
        replies = await asyncio.gather(*(rig.ask(LIST + "?device=nobody") for _ in range(20)))
    assert {each.status for each in replies} == {200}
    assert set(at_once) == {1}


def test_replay_decodes_few_bytes_in_one_round_of_the_event_loop(tmp_path: Path) -> None:
    """Twenty letters of 30 kB are ten rounds, 250 small ones are three, a huge one is its own."""
    large = [invalid(b"%02d" % number + b"y" * 30_000) for number in range(20)]
    for letters, sizes in (
        (large, [2] * 10),
        (drained(250), [100, 100, 50]),
        ([*drained(1), invalid(b"z" * 100_000), invalid(b"1")], [1, 1, 1]),
    ):
        folder = tmp_path / str(len(letters))
        store = LetterFiles(folder)
        keep(store, letters)
        store.close()
        live = list(live_letters(folder))
        some = list(dashboard_letters.rounds(live))
        assert [len(each) for each in some] == sizes
        assert list(itertools.chain(*some)) == live


async def test_replay_brings_in_what_is_good_now_and_leaves_the_rest(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """Replay works by ids and by condition. Stored letters are done; nothing is stored twice."""
    async with running(tmp_path, readings_url) as rig:
        letters: list[Letter] = [*drained(3), invalid(GOOD_LATE), invalid(b'{"device_id":"x"}')]
        await rig.dead_letters.append(letters)
        first = (await ids(rig, "?reason=drained"))[0]
        done = (await rig.send(LIST + "/replay", {"ids": [first]})).document
        assert (done["asked"], done["replayed"], done["new"]) == (1, 1, 1)
        assert len(read(tmp_path)) == 4
        done = (await rig.send(LIST + "/replay", {"where": {}})).document
        assert (done["asked"], done["replayed"], done["new"]) == (4, 3, 3)
        assert done["refused"] == {"missing_field": 1}
        assert [each.original for each in read(tmp_path)] == [b'{"device_id":"x"}']
        assert await readings_connection.fetchval("select count(*) from readings") == 4
        await rig.dead_letters.append(letters[:3])
        done = (await rig.send(LIST + "/replay", {"where": {"reason": "drained"}})).document
        assert (done["new"], done["duplicate"]) == (0, 3)


async def test_replay_that_the_database_refuses_leaves_the_letter(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """A refused row is reported with its code; a missing table stops the replay."""
    await readings_connection.execute("alter table readings add constraint c check (value < 5)")
    async with running(tmp_path, readings_url) as rig:
        hot = Letter("refused_by_database", "23514", "", 1, Reading(10**15, "d", "m", 9.0))
        cool = Letter("refused_by_database", "23514", "", 1, Reading(10**15, "d", "m", 1.0))
        await rig.dead_letters.append([hot, cool])
        done = (await rig.send(LIST + "/replay", {"where": {}})).document
        assert (done["replayed"], done["refused"], done["stopped"]) == (1, {"23514": 1}, "")
        await readings_connection.execute("alter table readings rename value to val")
        done = (await rig.send(LIST + "/replay", {"where": {}})).document
        assert done["replayed"] == 0
        assert "no column value" in done["stopped"]
        assert read(tmp_path) == [hot]


async def test_discard_forgets_exactly_what_was_named(tmp_path: Path) -> None:
    """Discard marks every line of the id, and no other."""
    async with running(tmp_path) as rig:
        await rig.dead_letters.append(drained(3))
        wanted = (await ids(rig))[1]
        reply = await rig.send(LIST + "/discard", {"ids": [wanted, "f" * 32]})
        assert reply.document == {"discarded": 1}
        assert wanted not in await ids(rig)
        assert len(read(tmp_path)) == 2
        await rig.dead_letters.look()
        assert rig.dead_letters.stats().live == 2


async def test_one_action_at_a_time_and_never_beside_another_replayer(
    tmp_path: Path, readings_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another replay has the lock the answer is busy; the lock is released afterwards."""
    monkeypatch.setattr(dashboard_letters, "LOCK_WAIT_S_MAX", 0.3)
    async with running(tmp_path, readings_url) as rig:
        await rig.dead_letters.append(drained(1))
        lock = try_replay_lock(tmp_path)
        assert lock is not None
        first, second = await asyncio.gather(
            rig.send(LIST + "/replay", {"where": {}}), rig.send(LIST + "/discard", {"where": {}})
        )
        lock.close()
        assert (first.code, second.code) == ("busy", "busy")
        assert "retry-after" in first.headers
        assert (await rig.send(LIST + "/discard", {"where": {}})).document == {"discarded": 1}
        again = try_replay_lock(tmp_path)
        assert again is not None
        again.close()


async def test_replay_without_a_database_says_so(tmp_path: Path) -> None:
    """Without a database a replay is refused and nothing is marked."""
    async with running(tmp_path) as rig:
        await rig.dead_letters.append(drained(1))
        assert (await rig.send(LIST + "/replay", {"where": {}})).code == "starting"
        assert len(read(tmp_path)) == 1


async def test_last_readings_of_a_device_are_its_newest(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """The last readings are ordered by `ts`, for any name; an unknown device has none."""
    name = "d'; drop table readings; --é"
    for second, device in ((1, name), (2, name), (3, "other"), (3, name)):
        await readings_connection.execute(
            "insert into readings values (to_timestamp($1), $2, 'm', 0.1)", 1.5 + second, device
        )
    async with running(tmp_path, readings_url) as rig:
        rig.dashboard.devices.seen([name], 10**15)
        document = (await rig.ask(f"/devices/readings?device_id={quote(name)}&limit=2")).document
        assert document["device_id"] == name
        assert document["seen"]["first_seen"] == "2001-09-09T01:46:40Z"
        assert document["readings"] == [
            {"ts": "1970-01-01T00:00:04.500000Z", "metric": "m", "value": 0.1},
            {"ts": "1970-01-01T00:00:03.500000Z", "metric": "m", "value": 0.1},
        ]
        document = (await rig.ask("/devices/readings?device_id=nobody")).document
        assert (document["seen"], document["readings"]) == (None, [])


async def test_lookup_says_what_is_in_its_way_and_recovers(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """A locked or missing table or a lost connection gives 503, and later it answers again."""
    query = "/devices/readings?device_id=d"
    async with running(tmp_path, readings_url) as rig:
        assert (await rig.ask(query)).status == 200
        async with readings_connection.transaction():
            await readings_connection.execute("lock table readings in access exclusive mode")
            assert (await rig.ask(query)).code == "database_away"
        assert (await rig.ask(query)).status == 200
        await readings_connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name = 'iot-ingest dashboard'"
        )
        await rig.ask(query)
        assert (await rig.ask(query)).status == 200
        await readings_connection.execute("alter table readings rename to away")
        assert (await rig.ask(query)).code == "database_away"


async def test_lookup_does_not_wait_long_for_the_questions_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a database that does not answer, each request waits once, not for all before it."""
    monkeypatch.setattr(lookup_postgres, "LOOKUP_S_MAX", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        url = f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/none"
        lookup = Lookup(lambda: url, tables=NO_TABLES)
        async with lookup._queue:
            with pytest.raises(Refused) as refused:
                await lookup.last_readings("d", 1)
            assert refused.value.code == "busy"
        with pytest.raises(Refused) as refused:
            await lookup.last_readings("d", 1)
        assert refused.value.code == "database_away"
        assert "index" not in refused.value.detail  # which would not help
        assert not lookup._queue.locked()


STEPS = "select to_timestamp($1::float8 + n), $2, $3, n from generate_series(0, $4::int - 1) n"


async def fill(
    connection: asyncpg.Connection, device: str, metric: str, count: int, from_s: float = 1000
) -> None:
    """Store `count` readings, one a second, with the values 0, 1, 2, .."""
    await connection.execute(f"insert into readings {STEPS}", from_s, device, metric, count)


async def document(rig: Rig, query: str) -> Any:
    """Return the JSON of an answer that must be a good one."""
    reply = await rig.ask(query)
    assert reply.status == 200, reply.document
    return reply.document


async def test_advice_is_typed_as_here(readings_url: str) -> None:
    """Each service says it in its own words, whatever the process was that imported this."""
    lookup = Lookup(lambda: readings_url, tables=NO_TABLES, run="kubectl exec pod --")
    assert "`kubectl exec pod -- schema apply --device-index`" in lookup.index_advice


@pytest.mark.parametrize("index", [False, True])
async def test_curve_has_least_mean_and_greatest_of_each_step(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection, index: bool
) -> None:
    """Buckets hold exactly the readings of the device, the metric and the time asked for.

    A time in which there is nothing has no bucket. Values that have no finite sum have a mean.
    """
    await apply(readings_connection, device_index=index)
    await fill(readings_connection, "d", "t", 25)
    await fill(readings_connection, "d", "other", 5)
    await fill(readings_connection, "e", "t", 5)
    await readings_connection.execute(
        "insert into readings values (to_timestamp(2000), 'd', 't', 1.7e308), "
        "(to_timestamp(2001), 'd', 't', 1.6e308), (to_timestamp(2002), 'd', 't', 3)"
    )
    async with running(tmp_path, readings_url) as rig:
        query = "/devices/readings?device_id=d&metric=t&step=10"
        found = await document(rig, f"{query}&from=1005&to=1970-01-01T00:16:55Z")
        assert found["buckets"] == [
            [1000, 5, 7, 9, 5],
            [1010, 10, 12, 14, 5],
        ]
        assert (found["device_id"], found["metric"], found["step"]) == ("d", "t", 10)
        assert found["device_index"] is index
        assert found.get("advice") == (None if index else INDEX_ADVICE.format(run="ingest"))
        large = await document(rig, f"{query}&from=1990&to=2010")
        assert large["buckets"] == [[2000, 3, 3, 1.7e308, 3]]
        query = "/devices/readings?device_id=d&metric=t&from=1020&to=1024&limit=3"
        rows = (await document(rig, query))["readings"]
        assert [each["value"] for each in rows] == [23, 22, 21]
        every = await document(rig, "/devices/readings?device_id=d&limit=500")
        assert every["metrics"] == ["other", "t"]
        assert len(every["readings"]) == 33
        assert every["readings"][0]["ts"] == "1970-01-01T00:33:22Z"


async def test_question_that_takes_too_long_is_ended_and_offers_the_index(
    readings_url: str, readings_connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends it in time; the next question is answered on the same connection.

    An error of the values is told as that, and not as a database that is away.
    """
    monkeypatch.setattr(lookup_postgres, "LOOKUP_S_MAX", 0.2)
    slow = lookup_postgres._CURVE.replace("order by bucket", ", pg_sleep(9) order by bucket")
    await fill(readings_connection, "d", "t", 3)
    lookup = Lookup(lambda: readings_url, tables=NO_TABLES)
    within = Between(10**9, 2 * 10**9)
    with monkeypatch.context() as patched:
        patched.setattr(lookup_postgres, "_CURVE", slow)
        with pytest.raises(Refused) as refused:
            await lookup.curve("d", "t", within, 10**6)
    assert refused.value.code == "too_slow"
    assert " schema apply --device-index`" in refused.value.detail
    assert "50 to 61 bytes a row" in refused.value.detail
    connection = lookup.connection
    assert len((await lookup.curve("d", "t", within, 10**6))["buckets"]) == 3
    assert lookup.connection is connection
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await connection.execute("delete from readings")  # type: ignore[union-attr]
    zero = lookup_postgres._CURVE.replace("order by bucket", "order by 1 / (count - count)")
    monkeypatch.setattr(lookup_postgres, "_CURVE", zero)
    with pytest.raises(Refused, match="division by zero") as refused:
        await lookup.curve("d", "t", within, 10**6)
    assert refused.value.code == "internal"
    await lookup.close()


@pytest.mark.parametrize("index", [False, True])
async def test_list_has_all_devices_by_name_with_their_last_readings(
    tmp_path: Path, readings_url: str, readings_connection: asyncpg.Connection, index: bool
) -> None:
    """Pages follow each other without a gap; a prefix selects. Devices of the table are listed
    that have not posted since the start: without the index, those of its newest readings."""
    await apply(readings_connection, device_index=index)
    for name in ("a-1", "a-2", "b%1", "é"):
        await fill(readings_connection, name, "t", 3)
        await fill(readings_connection, name, "u", 2)
    async with running(tmp_path, readings_url) as rig:
        for name in ("é", "a-2", "silent"):
            rig.dashboard.devices.seen([name], 10**15)
        names, after = [], ""
        for _ in range(10):
            page = await document(rig, f"/devices/list?limit=2&after={after}")
            names += [each["device_id"] for each in page["devices"]]
            after = names[-1].replace("%", "%25")
            if not page["more"]:
                break
        assert names == ["a-1", "a-2", "b%1", "silent", "é"]
        page = await document(rig, "/devices/list?prefix=a-")
        assert (page["matching"], page["exact"], page["why"]) == (1, True, "")
        last = page["devices"][-1]
        assert last["seen"]["last_seen"] == "2001-09-09T01:46:40Z"
        assert last["last"] == {"ts": "1970-01-01T00:16:42Z", "metric": "t", "value": 2}
        assert ("advice" in page) is not index
        silent = (await document(rig, "/devices/list?prefix=s"))["devices"]
        assert [each["last"] for each in silent] == [None]
        newest = await document(rig, "/devices/newest?limit=3")
        assert {each["device_id"] for each in newest["readings"]} <= {"a-1", "a-2", "b%1", "é"}
        assert [each["ts"] for each in newest["readings"]] == ["1970-01-01T00:16:42Z"] * 3


async def test_list_without_the_database_says_why_there_are_no_values(tmp_path: Path) -> None:
    """Devices are listed; instead of last values there is the reason."""
    async with running(tmp_path) as rig:
        rig.dashboard.devices.seen(["d"], 10**15)
        page = await document(rig, "/devices/list")
        newest = await document(rig, "/devices/newest")
        assert newest["readings"] == []
        assert page["why"] == newest["why"] == "the service has not seen its database yet"
        assert [(each["device_id"], each["last"]) for each in page["devices"]] == [("d", None)]


async def test_questions_use_one_process_of_the_server_one_after_another(
    readings_url: str, readings_connection: asyncpg.Connection
) -> None:
    """Ten questions at once: all are answered or get `busy`, over one connection."""
    await fill(readings_connection, "d", "t", 10)
    lookup = Lookup(lambda: readings_url, tables=NO_TABLES)
    asked = [lookup.last_readings("d", 5) for _ in range(10)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert sum(isinstance(each, dict) for each in answers) >= lookup_postgres.WAITING_MAX
    assert {each.code for each in answers if isinstance(each, Refused)} <= {"busy"}
    opened = await readings_connection.fetchval(
        "select count(*) from pg_stat_activity where application_name = 'iot-ingest dashboard' "
        "and datname = current_database()"
    )
    assert opened == 1
    await lookup.close()
