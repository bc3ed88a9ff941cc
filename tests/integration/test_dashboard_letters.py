"""Dead letters and last readings over the dashboard, with a real folder and database."""

from __future__ import annotations

import asyncio
import itertools
import socket
from pathlib import Path
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
from ingest.sinks.postgres.lookup import Lookup
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
