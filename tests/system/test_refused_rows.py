"""Bad items and rows that the database refuses: named, kept, fixed and posted again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.commands import Here
from tests.system.fleet import FIRST_US, TABLE_SQL, reading
from tests.system.service import Service


def _post_of_100() -> list[dict[str, Any]]:
    items = [reading(FIRST_US + n) for n in range(100)]
    items[10]["metric"] = "temp\0erature"
    items[20]["value"] = "21.5"
    items[30]["ts"] = "9999-01-01T00:00:00Z"
    items[40]["device_id"] = "x" * 300
    return items


async def test_post_with_four_bad_items_keeps_ninety_six_and_the_bytes_of_four(
    open_tmp_path: Path, at_hand: dict[str, Any], here: Here
) -> None:
    """Accepted and dead-lettered add up, each error is named, and fixed items are accepted."""
    state = open_tmp_path / "state"
    async with Service(state, **at_hand) as service:
        await service.wait_state("accepting")
        answer = await service.post(_post_of_100())
        assert answer.status == 202
        assert (answer.document["accepted"], answer.document["dead_lettered"]) == (96, 4)
        errors = {error["index"]: error for error in answer.document["errors"]}
        assert {index: error["code"] for index, error in errors.items()} == {
            10: "name_control_character",
            20: "wrong_type",
            30: "ts_in_future",
            40: "name_too_long",
        }
        samples = await service.wait_quiet()
        assert samples['ingest_readings_dead_lettered_total{reason="invalid"}'] == 4
        assert samples["ingest_ledger_imbalance_rows"] == 0
        assert len(await service.query(TABLE_SQL)) == 96

        shown = await here("dlq", "show", "--state-dir", state)
        assert shown.code == 0, shown.stderr
        for text in ("wrong_type", "ts_in_future", "9999-01-01T00:00:00Z", "x" * 300):
            assert text in shown.stdout
        (file,) = (state / "dead-letters").glob("*.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        bad = _post_of_100()
        assert [json.loads(line["original"]) for line in lines] == [
            bad[index] for index in (10, 20, 30, 40)
        ]

        copy = open_tmp_path / "copy.jsonl"
        fixed = [
            ("temp\\u0000erature", "temperature"),
            ('"21.5"', "21.5"),
            ("9999-01-01", "2025-01-01"),
            ("x" * 300, "device-40"),
        ]
        copied: list[str] = []
        for line, (wrong, right) in zip(lines, fixed, strict=True):
            assert wrong in line["original"]
            copied.append(json.dumps({**line, "original": line["original"].replace(wrong, right)}))
        copy.write_text("\n".join(copied) + "\n")
        words = ("--file", copy, "--edited", "--state-dir", state, "--database-unsafe", "true")
        done = await here("dlq", "replay", *words)
        assert done.code == 0, done.stdout + done.stderr
        assert len(await service.query(TABLE_SQL)) == 100
        stats = await here("dlq", "stats", "--json", "--state-dir", state)
        assert stats.code == 0, stats.stderr


async def test_check_constraint_refuses_one_row_and_commits_ninety_nine_in_the_same_flush(
    open_tmp_path: Path, at_hand: dict[str, Any]
) -> None:
    """The other rows are committed; `ack=committed` names the refused row with its SQLSTATE."""
    async with Service(open_tmp_path / "state", **at_hand) as service:
        await service.wait_state("accepting")
        await service.query("alter table readings add constraint warm check (value < 1000000)")
        items = [reading(FIRST_US + n) for n in range(100)]
        items[57]["value"] = 2_000_000.5
        answer = await service.post(items, ack="committed")
        assert answer.status == 200
        assert (answer.document["accepted"], answer.document["dead_lettered"]) == (99, 1)
        (error,) = answer.document["errors"]
        assert (error["index"], error["code"], error["sqlstate"]) == (
            57,
            "refused_by_database",
            "23514",
        )
        samples = await service.wait_quiet()
        assert samples["ingest_flush_rows_count"] == 1
        assert samples["ingest_readings_committed_total"] == 99
        assert samples['ingest_readings_dead_lettered_total{reason="refused_by_database"}'] == 1
        assert samples["ingest_ledger_imbalance_rows"] == 0
        (file,) = (open_tmp_path / "state/dead-letters").glob("*.jsonl")
        (line,) = [json.loads(each) for each in file.read_text().splitlines()]
        assert (line["reason"], line["code"]) == ("refused_by_database", "23514")
        assert line["reading"]["value"] == 2_000_000.5
