"""Nothing is documented twice by hand: what the code knows, documents show as the code prints it.

`python -m ingest.cli_docs --write README.md deploy/ingest.env.example` mends what fails here.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from ingest import codes
from ingest.cli import WORDS
from ingest.cli_docs import TABLES, main, metrics_table, refreshed
from ingest.config_text import env_example

REPOSITORY = Path(__file__).parent.parent
README = REPOSITORY / "README.md"
EXAMPLE = REPOSITORY / "deploy" / "ingest.env.example"


@pytest.mark.parametrize("name", TABLES)
def test_readme_shows_the_table_that_the_code_prints(name: str) -> None:
    """A setting, code or metric that is new or gone is so in the README too."""
    region = re.search(
        rf"<!-- generated: {name} -->\n\n(.*?)\n\n<!-- end -->", README.read_text(), re.DOTALL
    )
    assert region is not None, f"README.md has no region `<!-- generated: {name} -->`"
    assert region[1] == TABLES[name]()


def test_readme_names_every_word_of_the_command_line() -> None:
    """A word that nobody can read about is not there."""
    text = README.read_text()
    missing = [word for word in WORDS if f"ingest {word}" not in text]
    assert not missing, f"README.md shows no `ingest {missing[0]}`"
    assert all(WORDS.values())


def test_example_of_the_environment_is_what_the_code_prints() -> None:
    """deploy/ingest.env.example holds exactly the settings that exist."""
    assert EXAMPLE.read_text() == env_example()


def test_refreshing_current_documents_changes_nothing(tmp_path: Path) -> None:
    """The command that mends documents is idempotent, and what it writes is what is compared."""
    copies = [Path(shutil.copy(path, tmp_path)) for path in (README, EXAMPLE)]
    assert main(["--write", *map(str, copies)]) == 0
    assert [each.read_text() for each in copies] == [README.read_text(), EXAMPLE.read_text()]


def test_refreshing_mends_a_stale_region_and_nothing_else() -> None:
    """Text outside of the markers is the author's."""
    stale = "a\n<!-- generated: item-codes -->\nold\n<!-- end -->\nb\n<!-- end -->\nc\n"
    fresh = refreshed(stale)
    assert (
        fresh
        == f"a\n<!-- generated: item-codes -->\n\n{TABLES['item-codes']()}\n\n<!-- end -->\n"
        + ("b\n<!-- end -->\nc\n")
    )
    assert refreshed(fresh) == fresh
    with pytest.raises(ValueError, match="no table is called wages"):
        refreshed("<!-- generated: wages -->\n<!-- end -->")


def test_printed_tables_hold_every_code_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole output is what a new document starts from."""
    assert main([]) == 0
    printed = capsys.readouterr().out
    for code in (*codes.PROBLEMS, *codes.ITEM_CODES):
        assert printed.count(f"\n| `{code}` |") == 1
    assert refreshed(printed) == printed


def test_metrics_of_the_contract_are_in_the_table() -> None:
    """The names that dashboards rely on, with their labels."""
    rows = {
        cells[1].strip("` "): cells[3].replace("`", "").strip()
        for cells in (line.split("|") for line in metrics_table().splitlines()[2:])
    }
    assert rows["ingest_http_requests_total"] == "route, code"
    assert rows["ingest_readings_rejected_total"] == "code"
    assert rows["ingest_readings_dead_lettered_total"] == "reason"
    assert rows["ingest_flush_total"] == "trigger"
    assert rows["ingest_retries_total"] == "verdict"
    assert rows["ingest_hold"] == "reason"
    assert rows["ingest_flush_duration_seconds"] == "method"
    counters = (
        "readings_received readings_accepted readings_committed readings_duplicate "
        "readings_recovered readings_replayed readings_dropped"
    )
    assert rows.keys() >= {f"ingest_{each}_total" for each in counters.split()}
    gauges = (
        "readings_held ledger_imbalance_rows buffer_rows buffer_rows_max buffer_bytes "
        "buffer_oldest_age_seconds db_up dlq_bytes dlq_readings dlq_oldest_age_seconds build_info"
    )
    histograms = "http_request_duration_seconds flush_rows commit_latency_seconds event_lag_seconds"
    assert rows.keys() >= {f"ingest_{each}" for each in f"{gauges} {histograms}".split()}
