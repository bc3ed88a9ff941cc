"""`ingest sources` and `ingest tables`: what they suggest, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.cli.commands import main
from ingest.cli.doctor.checks import listed_checks
from ingest.cli.tables import file_text, suggestions
from ingest.config.declared_tables import PRESETS, declared_tables
from ingest.config.named_files import ENTRIES_MAX
from ingest.config.settings import Settings
from ingest.model.tables import NO_TABLES, ColumnTable, Tables
from tests.support.commands import Here, Step
from tests.unit.config.test_declared_tables import CLIMATE, SINCE_US

ESP = '[[source]]\nname = "esp"\ndevice = "id"\n'
BODY = b'{"id":"esp-1","temp":21.4,"hum":40}'


@pytest.fixture(name="file")
def _file(tmp_path: Path) -> Path:
    path = tmp_path / "sources.toml"
    path.write_text(ESP)
    return path


EARLIER = "source 2 ('esp'), key name: it is the name of an earlier source"
SAME_PATH = '[[source]]\npreset="ttn"\npath="/a/b"\n' + ESP + 'path="/a/b"\n'
CHIRPSTACK = b'{"deviceInfo":{"devEui":"01"},"object":{"t":1},"rxInfo":[{}]}'
AT = "--sources-file {file}"
TRIED = [
    Step(f"try esp {AT}", out=["  esp-1  temp  21.4\n", "  esp-1  hum  40.0\n"], body=BODY),
    Step(f"try esp --json {AT}", out=['"value": 21.4', '"value": 40.0'], body=BODY),
    Step(
        f"try esp {AT}",
        out=[
            "is this meant? `ts` looks like a time",
            "`t` is a number in quotes, not stored: numeric_strings = true",
        ],
        body=b'{"id":"a","ts":1,"t":"2"}',
    ),
    Step(
        f"try esp {AT}",
        out=["is this meant? `t` is a text or null, no number: not stored"],
        body=b'{"id":"a","t":"nan","u":1}',
    ),
    # 1 for a fault, 2 for a body that would be refused, or a wrong name.
    Step(
        f"try esp {AT}",
        1,
        ["document 0: no_device at device: nothing names a device: `device` "],
        body=b'{"t":1}',
    ),
    Step(f"try esp {AT}", 2, err=["the post would be refused (not_json)"], body=b"{"),
    Step(
        f"try esp {AT}",
        2,
        err=["expected a JSON value, at 'NaN,\"u\":1}'"],
        body=b'{"id":"a","t":NaN,"u":1}',
    ),
    Step(f"try epp {AT}", 2, err=["there is no source 'epp'"]),
    # A preset needs no file. What comes beside the body is given as flags.
    Step(
        "try chirpstack",
        out=["  01  t  1.0\n"],
        err=["this is the preset"],
        body=CHIRPSTACK,
    ),
    Step("try chirpstack", 1, ["ignored: 1"], body=CHIRPSTACK.replace(b"rx", b"tx")),
    Step("try airgradient --in-path device=a", out=["  a  object.t  1.0\n"], body=CHIRPSTACK),
    Step("try ttn --header x", 2, err=["write NAME:VALUE"]),
    Step("list --config {file}", 2, err=["setting sources_file"]),
    Step(f"list {AT}x", 2, err=["cannot be read"]),
    Step("list", out=["sources_file is empty"]),
]
LISTED = ["/v1/in/esp", "/api/v1/{token}/telemetry  (preset thingsboard)", "presets: ttn"]
FILES: list[tuple[str, list[Step]]] = [
    (ESP, TRIED),
    (ESP + '[[source]]\npreset = "thingsboard"\n', [Step(f"list {AT}", out=LISTED)]),
    *(
        (text, [Step(f"list {AT}", 2, err=[said])])
        for text, said in (
            ("[[source]]\n", "source 1, key name: write letters"),
            (ESP + ESP, EARLIER),
            (ESP + 'valeus = "."\n', "source 1 ('esp'), key valeus: there is no such key"),
            (ESP + 'valeus = "."\n', "did you mean values"),
            (SAME_PATH, "key path: ttn has /a/b"),
            ("[source]\n", "write [[source]] with two brackets"),
            ("listen = 1\n", "'listen' is no part of a source"),
            ("[[source]\n", "is not TOML"),
            ("[[source]]\n" * (ENTRIES_MAX + 1), "more than 200 sources"),
            ("#" * 1_048_577, "is larger than"),
        )
    ),
]


@pytest.mark.parametrize(("text", "steps"), FILES, ids=range(len(FILES)))
def test_sources_tells_what_would_be_stored_and_what_to_write(
    file: Path, capsys: pytest.CaptureFixture[str], text: str, steps: list[Step]
) -> None:
    """Faults of the file name the table, the key, and what to write instead."""
    file.write_text(text)
    here = Here(capsys, lambda words: main(["sources", *words]))
    assert here.faults(steps, file=file) == []


def test_doctor_says_what_is_in_the_file(file: Path) -> None:
    """The service would not start with a wrong one."""
    settings = Settings(sources_file=str(file))
    assert next(listed_checks(settings)) == ("sources", "ok", "1 source: esp")
    file.write_text("x")
    assert next(listed_checks(settings)).state == "FAIL"


SINCE = "2026-12-01T00:00:00Z"


def suggested(
    *seen: tuple[str, int], known: Tables = NO_TABLES
) -> dict[str, tuple[str, str, int, int]]:
    """Return by name: measurement, sorted columns, readings and rows of each suggested table."""
    sets = [(frozenset(metrics.split()), moments) for metrics, moments in seen]
    return {
        table.name: (table.measurement, " ".join(sorted(table.columns)), readings, rows)
        for table, readings, rows in suggestions(sets, known, "readings", SINCE_US)
    }


def test_fields_of_a_measurement_become_a_table_with_a_row_for_each_series() -> None:
    """All plugins of a host may have the same time."""
    host = "cpu.idle,cpu=0 cpu.user,cpu=0 cpu.idle,cpu=1 cpu.user,cpu=1 load.one load.five up.s"
    assert suggested((host, 10)) == {
        "cpu": ("cpu", "idle user", 40, 20),
        "load": ("load", "five one", 20, 10),
    }
    names = [("a.b.x a.b.y", 4), ("readings.a readings.b", 3), ("ingest_x.a ingest_x.b", 2)]
    assert [*suggested(*names, ("1.x 1.y", 1))] == ["a_b", "readings_2", "t_ingest_x", "t_1"]


def test_metrics_that_come_with_each_other_become_a_table() -> None:
    """Each with the most frequent one that it comes with, in at least half of all cases."""
    seen = (("temperature humidity", 90), ("temperature humidity battery", 10), ("door", 50))
    assert suggested(*seen) == {"sensors": ("", "battery humidity temperature", 210, 100)}
    apart = (("temperature", 90), ("temperature humidity", 1), ("humidity", 90))
    assert suggested(*apart) == {}
    assert suggested(("a b", 5), ("c d", 4)) == {
        "sensors": ("", "a b", 10, 5),
        "sensors_2": ("", "c d", 8, 4),
    }


def test_what_cannot_be_a_column_or_has_one_is_left_out() -> None:
    """A name of the key, one that is too long, one with tags, and what a declared table takes."""
    known = Tables([ColumnTable("sensors", "", ("a", "b"), (0, 0))])
    long = "x" * 64
    seen = (f"a b ts xmin {long} e,f", 3)
    assert suggested(seen, known=known) == {}
    assert suggested(seen, ("c d", 3), known=known) == {"sensors_2": ("", "c d", 6, 3)}


def test_what_comes_with_a_declared_table_becomes_columns_of_it() -> None:
    """Also a single one, and one that comes seldom; as many as the table has room for."""
    names = tuple(f"a{number}" for number in range(99))
    climate = ColumnTable("climate", "", names, (0,) * 99)
    cpu = ColumnTable("host", "cpu", ("idle",), (0,))
    known = Tables([climate, cpu])
    seen = [("a1 noise", 9), ("a1 noise rain", 1), ("cpu.idle,cpu=0 cpu.user,cpu=0", 5), ("x y", 2)]
    assert suggested(*seen, known=known) == {
        "climate": ("", "noise", 10, 10),
        "host": ("cpu", "user", 5, 5),
        "sensors": ("", "x y", 4, 2),
    }


def test_preset_is_suggested_where_it_fits() -> None:
    """At least half of its fields came, and no other one."""
    fields = PRESETS["telegraf_system"]["fields"]
    for count, others in ((len(fields), ()), (4, ()), (3, ()), (4, ("mine",))):
        metrics = frozenset(f"system.{each}" for each in (*fields[:count], *others))
        (found,) = suggestions([(metrics, 2)], NO_TABLES, "readings", SINCE_US)
        assert found[1:] == (2 * len(metrics), 2)
        fits = count > 3 and not others
        assert ('preset = "telegraf_system"' in file_text([found])) == fits
        assert [*found.table.columns] == (fields if fits else sorted((*fields[:count], *others)))


PARTS = st.sampled_from(["cpu", "a\\,b", ",", "ü", "value", "", ".", "x" * 64])
METRICS = (
    st.builds("{}.{},{}".format, PARTS, PARTS, PARTS)
    | PARTS.filter(bool)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
)


@example([(frozenset({"cpu.cpu,cpu", "cpu.value,cpu"}), 1)])
@given(st.lists(st.tuples(st.frozensets(METRICS, min_size=1), st.integers(1, 9)), max_size=9))
def test_suggested_file_is_read_as_it_was_meant(
    tmp_path_factory: pytest.TempPathFactory, seen: list[tuple[frozenset[str], int]]
) -> None:
    """Whatever the names are; and its tables take as many readings as it says."""
    found = suggestions(seen, NO_TABLES, "readings", SINCE_US)
    file = tmp_path_factory.getbasetemp() / "tables.toml"
    file.write_text(file_text(found))
    tables = Tables(declared_tables(str(file), "readings"))
    assert list(tables.all) == [each.table for each in found]
    homes = [(tables.home(metric), moments) for metrics, moments in seen for metric in metrics]
    for table, readings, _ in found:
        assert readings == sum(moments for home, moments in homes if home and home.table == table)


def test_list_shows_tables_and_presets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a file it says so."""
    file = tmp_path / "tables.toml"
    file.write_text(CLIMATE)
    steps = [
        Step("list", out=["tables_file is empty", "telegraf_cpu: usage_user, usage_system, "]),
        Step(
            "list --tables-file {file}",
            out=["climate  (metrics)\n  temperature", f"since {SINCE}\n"],
        ),
        Step("list --tables-file {file} --json", out=[f'"humidity": "{SINCE}"']),
        Step("list --tables-file {file}x", 2, err=["cannot be read"]),
    ]
    here = Here(capsys, lambda words: main(["tables", *words]))
    assert here.faults(steps, file=file) == []


def test_doctor_says_which_tables_the_file_has(tmp_path: Path) -> None:
    """The service would not start with a wrong one."""
    file = tmp_path / "tables.toml"
    file.write_text(CLIMATE)
    settings = Settings(tables_file=str(file))
    assert next(listed_checks(settings)) == ("tables", "ok", "1 table: climate")
    file.write_text("x")
    assert next(listed_checks(settings)).state == "FAIL"
