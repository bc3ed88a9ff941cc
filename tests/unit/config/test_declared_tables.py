"""The file of declared tables: what is read from it, its faults, and the presets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.telegraf import HOSTS, TELEGRAF
from ingest.app.post_rules import make_rules
from ingest.config.declared_tables import PRESETS, make_tables
from ingest.config.loading import load
from ingest.config.named_files import ENTRIES_MAX
from ingest.config.settings import Settings
from ingest.formats.lines.body import LinePost, decode
from ingest.formats.lines.keys import Naming
from ingest.formats.post import Post
from ingest.model.errors import ConfigError
from ingest.model.moments import COLUMNS_MAX, runs
from ingest.model.reading import Reading
from ingest.model.tables import NO_TABLES, ColumnTable

SINCE = "since = 2026-12-01T00:00:00Z\n"
SINCE_US, DAY_US = 1_796_083_200_000_000, 86_400_000_000
CLIMATE = '[[table]]\nname = "climate"\nmetrics = ["temperature", "humidity"]\n' + SINCE
CPU = '[[table]]\npreset = "telegraf_cpu"\n' + SINCE


def settings(tmp_path: Path, text: str) -> Settings:
    """Return the settings with such a file."""
    path = tmp_path / "tables.toml"
    path.write_text(text)
    return load(environ={}, flags={"tables_file": str(path)}).settings


def test_entries_of_one_name_are_one_table(tmp_path: Path) -> None:
    """A later entry gives it more columns, from its own time on. A time may have any zone."""
    later = CLIMATE.replace('"temperature", "humidity"', '"noise"')
    later = later.replace("2026-12-01T00:00:00Z", "2026-12-02T01:00:00+01:00")
    columns, since_us = ("temperature", "humidity", "noise"), (SINCE_US,) * 2 + (SINCE_US + DAY_US,)
    expected = ColumnTable("climate", "", columns, since_us)
    assert make_tables(settings(tmp_path, CLIMATE + CPU + later)).all[0] == expected


def test_without_a_file_or_an_entry_there_is_no_table(tmp_path: Path) -> None:
    """Then nothing changes."""
    assert make_tables(Settings()) is NO_TABLES
    assert not make_tables(settings(tmp_path, "# none yet\n"))


@pytest.mark.parametrize("buffer", ["buffer_bytes_max", "journal_bytes_max"])
def test_each_post_fits_into_the_buffer(tmp_path: Path, buffer: str) -> None:
    """Each reading may be a row of its own. Else a post would wait for room that never comes."""
    bound: dict[str, Any] = {buffer: 1 << 20}
    small = replace(settings(tmp_path, CPU), **bound)
    with pytest.raises(ConfigError, match=rf"table 'cpu': a reading takes .* into {buffer} \(1,04"):
        make_tables(small)
    assert make_tables(replace(small, post_rows_max=400))


FAULTS = [
    ("[[tables]]\n", "'tables' is no part of a table: begin each table with [[table]]"),
    ("name = 1\n", "'name' is no part of a table: begin each table with [[table]]"),
    ("[table]\n", "write [[table]] with two brackets before each table"),
    ("[[table]]\n" * (ENTRIES_MAX + 1), "has more than 200 tables"),
    ("[[table]]\n", "table 1, key metrics: write a list of names"),
    (CPU + "[[table]]\nname = 1\n" + SINCE, "table 2 (1), key metrics: "),
    (CLIMATE + 'metrcs = ["x"]\n', "table 1 ('climate'), key metrcs: there is no such key; "),
    (CLIMATE + 'metrcs = ["x"]\n', "; did you mean metrics?"),
    (CLIMATE + 'fields = ["x"]\n', "key metrics: write either `metrics`, or `measurement` and"),
    (CLIMATE.replace("climate", ""), "key name: write a text that is not empty"),
    (CLIMATE.replace("climate", "c" * 64), "has 64 bytes; PostgreSQL allows 63"),
    (CLIMATE.replace("climate", r"a\u0007"), "has a character that cannot be printed"),
    *(
        (CLIMATE.replace("climate", name), f"key name: '{name}' is taken; choose another one")
        for name in ("readings", "all_readings", "ingest_housekeeping")
    ),
    (CPU.replace("telegraf_cpu", "telegraf_cup"), "key preset: there is no 'telegraf_cup'; there"),
    (CPU.replace("telegraf_cpu", "telegraf_cup"), "; did you mean telegraf_cpu?"),
    (CPU.replace('"telegraf_cpu"', "[]"), "key preset: there is no []; "),
    (CPU + 'measurement = ""\n', "key measurement: write a text that is not empty"),
    (CPU + 'measurement = "a,b"\n', r"key measurement: write a comma as `\,`"),
    (CPU + 'measurement = "a\\u0007"\n', "the metric of 'usage_user' contains the control"),
    (CPU + "fields = []\n", "key fields: write a list of names"),
    (CPU + "fields = [1]\n", "key fields: 1 is not a text"),
    (CPU + 'fields = [""]\n', "key fields: '' is empty"),
    (CPU + 'fields = ["xmin"]\n', "each table has a column 'xmin' of its own; leave it out"),
    (CPU + f'fields = ["{"x" * 64}"]\n', "has 64 bytes; PostgreSQL allows 63"),
    (CPU + 'fields = ["a,b=c"]\n', "'a,b=c' has a comma: behind it are tags, which are no column"),
    (CPU + 'fields = ["a", "a"]\n', "key fields: the metric 'cpu.a' has a column of cpu already"),
    (CPU + CPU, "table 2 ('telegraf_cpu'), key fields: the metric 'cpu.usage_user' has a column"),
    (CLIMATE + CLIMATE.replace("climate", "b"), "key metrics: the metric 'temperature' has a col"),
    # The field `value` is not in the metric.
    (
        CLIMATE + '[[table]]\nname = "t"\nmeasurement = "humidity"\nfields = ["value"]\n' + SINCE,
        "table 2 ('t'), key fields: the metric 'humidity' has a column of climate already",
    ),
    (
        CLIMATE + CPU + 'name = "climate"\n',
        "key name: an earlier entry of this table is of metrics",
    ),
    (CPU + CLIMATE.replace("climate", "cpu"), "table is of the measurement cpu"),
    (
        CPU + f"fields = {[f'x{number}' for number in range(COLUMNS_MAX + 1)]}\n",
        "key fields: the table has more than 100 columns",
    ),
    (CLIMATE.replace(SINCE, ""), "key since: it is missing: the time from which on"),
    *(
        (CLIMATE.replace("2026-12-01T00:00:00Z", since), "is no time with a zone: write it as in ")
        for since in ("2026-12-01T00:00:00", "2026-12-01", "00:00:00", "1", '"soon"', "[]")
    ),
    (CLIMATE.replace("2026-12-01T00:00:00Z", "0001-01-01T00:00:00+01:00"), "with the Z"),
]


@pytest.mark.parametrize(("text", "told"), FAULTS, ids=range(len(FAULTS)))
def test_fault_names_path_number_name_and_key(tmp_path: Path, text: str, told: str) -> None:
    """A start is refused with what to write instead."""
    with pytest.raises(ConfigError) as caught:
        make_rules(settings(tmp_path, text))
    assert told in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "tables.toml"))


def test_settings_say_where_tables_belong(tmp_path: Path) -> None:
    """As they do of sources."""
    path = tmp_path / "ingest.toml"
    path.write_text(CLIMATE)
    with pytest.raises(ConfigError, match="tables have a file of their own: setting tables_file"):
        load(toml_path=path, environ={})


# As the plugins of Telegraf 1.37 write them on Linux; `system` writes one moment in two lines.
LINES = {
    "cpu": "cpu,cpu=cpu0,host=web1 usage_user=2.02,usage_system=1.01,usage_idle=96.9,usage_nice=0,"
    "usage_iowait=0,usage_irq=0,usage_softirq=0,usage_steal=0,usage_guest=0,usage_guest_nice=0",
    "mem": "mem,host=web1 active=9299595264i,available=16818249728i,available_percent=80.4,"
    "buffered=2383761408i,cached=13316689920i,commit_limit=14751920128i,committed_as=11781156864i,"
    "dirty=122880i,free=1877688320i,high_free=0i,high_total=0i,huge_page_size=2097152i,"
    "huge_pages_free=0i,huge_pages_total=0i,inactive=7549939712i,low_free=0i,low_total=0i,"
    "mapped=416763904i,page_tables=19787776i,shared=670679040i,slab=2081071104i,"
    "sreclaimable=1923395584i,sunreclaim=157286400i,swap_cached=1302528i,swap_free=4286128128i,"
    "swap_total=4294963200i,total=20913917952i,used=3335778304i,used_percent=15.9,"
    "vmalloc_chunk=0i,vmalloc_total=35184372087808i,vmalloc_used=0i,write_back=0i,"
    "write_back_tmp=0i",
    "disk": "disk,device=sda1,fstype=ext4,host=web1,label=root,mode=rw,path=/ free=398407520256i,"
    "inodes_free=97267461i,inodes_total=121847806i,inodes_used=24580345i,"
    "inodes_used_percent=20.1,total=499088621568i,used=100418957312i,used_percent=20.1",
    "diskio": "diskio,host=web1,name=sda io_await=0.5,io_svctm=0.1,io_time=1i,io_util=0.4,"
    "iops_in_progress=0i,merged_reads=3i,merged_writes=4i,read_bytes=5i,read_time=6i,reads=7i,"
    "weighted_io_time=8i,write_bytes=9i,write_time=10i,writes=11i",
    "net": "net,host=web1,interface=eth0 bytes_recv=3284081640i,bytes_sent=451838509i,drop_in=4i,"
    "drop_out=0i,err_in=0i,err_out=0i,packets_recv=3585442i,packets_sent=2663590i,speed=1000i",
    "system": "system,host=web1 load1=5.95,load15=7.66,load5=6.54,n_cpus=24i,n_physical_cpus=12i,"
    "n_unique_users=0i,n_users=0i 1796083200\nsystem,host=web1 uptime=1249632i 1796083200\n"
    'system,host=web1 uptime_format="14 days, 11:07"',
    "processes": "processes,host=web1 blocked=8i,dead=0i,idle=9i,paging=0i,parked=1i,running=1i,"
    "sleeping=265i,stopped=0i,total=274i,total_threads=687i,unknown=0i,zombies=0i",
}


@pytest.mark.parametrize("name", LINES)
def test_preset_takes_a_moment_of_the_plugin_in_one_row(tmp_path: Path, name: str) -> None:
    """No value of Telegraf is left over for the table of readings."""
    preset = f'[[table]]\npreset = "telegraf_{name}"\n{SINCE}'
    rules = make_rules(settings(tmp_path, preset))
    post = LinePost(Post("s", False, SINCE_US, 0.0, rules), Naming(("host",)), 1_000, 2**20)
    found = decode(f"{LINES[name]} 1796083200".encode(), post)
    (block,) = found.blocks
    ((form, _, rows, readings),) = runs(block.tuples)
    assert form is not None
    assert (form.table, rows, readings, found.errors) == (name, 1, block.rows, [])
    sent = set(form.columns) - {"usage_active"}  # with report_active only
    assert {f"telegraf_{each}" for each in LINES} == PRESETS.keys()
    assert sent == {each.metric.split(".")[1].split(",")[0] for each in values(block.tuples)}


def values(tuples: bytes) -> list[Reading]:
    """Return the readings of all rows."""
    return [reading for run in runs(tuples) for reading in run.decode()]


def test_preset_takes_the_posts_of_the_benchmark(tmp_path: Path) -> None:
    """It sends what Telegraf sends."""
    tables, fields = make_tables(settings(tmp_path, CPU)), HOSTS[TELEGRAF].fields
    assert all(tables.home(f"cpu.usage_{field},cpu=cpu0") for field in fields)
