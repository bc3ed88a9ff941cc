"""Documents show tables and figures as the code prints them; links lead somewhere.

`python -m tests.printing.documents --write docs/*/*.md deploy/ingest.env.example
deploy/nats/roles.conf`, `python -m tests.printing.openapi`, `python -m benchmarks.results` and
`python -m benchmarks.roles_document` repair what fails here; the author repairs links.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote

import pytest

from benchmarks import readme_numbers, results, roles_document, roles_record
from benchmarks.document import anchor
from benchmarks.record import read
from ingest.cli.commands import COMMANDS
from ingest.config.settings import env_example
from ingest.receiver.endpoint import FILE
from ingest.system.log_events import EVENTS
from tests.printing import openapi
from tests.printing.documents import TABLES, log_calls, metrics_table, roles_text
from tests.support.documents import DOCUMENTS, README, REPOSITORY, fences, without_fences

EXAMPLE = REPOSITORY / "deploy" / "ingest.env.example"
ROLES = REPOSITORY / "deploy" / "nats" / "roles.conf"


@pytest.mark.parametrize("name", TABLES)
def test_documents_show_the_table_that_the_code_prints(name: str) -> None:
    """Each printed table is in one document, with all settings, codes or metrics of the code."""
    regions = [
        found
        for text in DOCUMENTS.values()
        for found in re.findall(
            rf"<!-- generated: {name} -->\n\n(.*?)\n\n<!-- end -->", text, re.DOTALL
        )
    ]
    assert regions, f"no document has a region `<!-- generated: {name} -->`"
    assert regions == [TABLES[name]()]


def test_every_event_of_the_log_is_explained() -> None:
    """Each event that the code logs has a meaning, and no other has one."""
    assert {event for event, _ in log_calls()} == EVENTS.keys()


def test_readme_shows_the_figures_on_record() -> None:
    """The README has the newest figures on record; a figure changed by hand is corrected."""
    assert README.count("<!-- measured: sizing -->") == 1
    lines = read(results.FOLDER)
    assert readme_numbers.refreshed(README, lines) == README
    forged = README.replace("<!-- measured: sizing -->\n", "<!-- measured: sizing -->\n9,999")
    assert readme_numbers.refreshed(forged, lines) == README


def test_scaling_shows_the_figures_on_record() -> None:
    """docs/grow/scaling.md has the newest figures of `./run bench --roles`, in all its tables."""
    text = DOCUMENTS["docs/grow/scaling.md"]
    newest = roles_record.newest(roles_record.read())
    for name in roles_document.PARTS:
        assert text.count(f"<!-- measured: {name} -->") == 1
    assert roles_document.refreshed(text, newest) == text
    for name in roles_document.PARTS:
        begin = f"<!-- measured: {name} -->\n"
        assert roles_document.refreshed(text.replace(begin, f"{begin}9.99 "), newest) == text


def test_documents_name_every_word_of_the_command_line() -> None:
    """The documents name each command."""
    missing = [
        word for word in COMMANDS if f"ingest {word}" not in DOCUMENTS["docs/reference/settings.md"]
    ]
    assert not missing, f"docs/reference/settings.md shows no `ingest {missing[0]}`"
    assert all(each.purpose for each in COMMANDS.values())


def test_example_of_the_environment_is_what_the_code_prints() -> None:
    """deploy/ingest.env.example holds exactly the settings that exist; so do the other files."""
    assert EXAMPLE.read_text() == env_example()
    assert ROLES.read_text() == roles_text()
    assert FILE.read_text() == openapi.text()


RUN = {"sh", "python", "js", "sql"}
COMMAND = re.compile(
    r"^(?:\w+=\S+ )*(?:\./run|ingest|curl|docker|kubectl|psql|python3|export|sed|create|select)\b",
    re.MULTILINE,
)


def test_each_fenced_command_is_run_by_a_test_that_its_page_names() -> None:
    """Commands are fenced, and marked as their language; at most ten in all are not run.

    A page begins with `<!-- run by: test_x.py, test_y.py -->`, the tests that run its blocks. The
    same before a block is for this block only. Each named test names the page, since it reads the
    blocks from there. `<!-- not run: why -->` says that no test runs a block.
    """
    tests = defaultdict[str, str](str)
    for path in (REPOSITORY / "tests").rglob("*.py"):
        tests[path.name] += path.read_text()
    not_run, wrong = list[str](), list[str]()
    for page, text in DOCUMENTS.items():
        head = re.match(r"<!-- run by: (.+) -->\n", text)
        indented = r"^ {4,}(?:\./run|ingest|curl|export|psql)\b.*"
        wrong += [f"{page}: {each}" for each in re.findall(indented, without_fences(text), re.M)]
        for fence in fences(text):
            place = f"{page}: {fence.text.partition(chr(10))[0]}"
            run_by = (fence.run_by or (head[1] if head else "none")).split(", ")
            if fence.not_run:
                not_run.append(place)
            elif (fence.language in RUN or fence.run_by) and (
                false := [each for each in run_by if f'"{page}"' not in tests[each]]
            ):
                wrong.append(f"{place}: {false[0]} does not read it")
            elif fence.language not in RUN and not fence.run_by and COMMAND.search(fence.text):
                wrong.append(f"{place}: a command is marked as ```{fence.language}")
    assert not wrong, "\n".join(wrong)
    assert len(not_run) <= 10, "\n".join(not_run)


def test_metrics_of_the_contract_are_in_the_table() -> None:
    """The names that dashboards rely on, with their labels."""
    rows = dict(re.findall(r"^\| `(\w+)(?:\{(.+)\})?` \|", metrics_table(), re.MULTILINE))
    assert rows["ingest_http_requests_total"] == "route,code"
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


def test_files_that_code_and_glossary_name_exist() -> None:
    """A docstring sends its reader to other files, by the end of their path."""
    ours = list((REPOSITORY / "ingest").rglob("*.py"))
    there = [str(path) for path in (*ours, *(REPOSITORY / "tests").rglob("*.py"))]
    missing = [
        f"{path}: {name}"
        for path in (*ours, REPOSITORY / "docs" / "reference" / "contract.md")
        for name in re.findall(r"(?<![\w.*/{}-])(?:\w+/)*\w+\.py\b", path.read_text())
        if not any(each.endswith(f"/{name}") for each in there)
    ]
    assert not missing, "\n".join(missing)


MARKDOWN = sorted(
    path.relative_to(REPOSITORY)
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "benchmarks/*.md")
    for path in REPOSITORY.glob(pattern)
)
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"")


def dead_links(path: Path, text: str) -> list[str]:
    """Return the links of a document that lead nowhere in this repository; foreign ones are not
    followed.
    """
    dead = []
    for found in LINK.findall(re.sub(r"`[^`\n]*`", "", without_fences(text))):
        link = found[0] or found[1]
        if re.match(r"[a-z]+:", link):
            continue
        name, _, heading = unquote(link).partition("#")
        target = (path.parent / name).resolve() if name else path
        live = target.is_relative_to(REPOSITORY) and target.exists()
        if live and heading:
            live = heading in anchors(text if target == path else target.read_text())
        if not live:
            dead.append(link)
    return dead


def anchors(text: str) -> set[str]:
    """Return the anchors of a Markdown text's headings."""
    return {anchor(each) for each in re.findall(r"^#+ (.*)$", without_fences(text), re.MULTILINE)}


@pytest.mark.parametrize("path", MARKDOWN, ids=str)
def test_links_of_documents_lead_somewhere(path: Path) -> None:
    """Each link of a document leads to a file and a heading that exist."""
    assert not dead_links(REPOSITORY / path, (REPOSITORY / path).read_text())


def test_every_document_is_reached_from_the_readme() -> None:
    """Links lead from README.md to each document and picture, over some steps or directly."""
    reached, waiting = set(), [REPOSITORY / "README.md"]
    while waiting:
        path = waiting.pop()
        reached.add(path)
        if path.suffix != ".md":
            continue
        for found in LINK.findall(path.read_text()):
            target = (path.parent / (found[0] or found[1]).partition("#")[0]).resolve()
            if target.is_file() and target not in reached:
                waiting.append(target)
    every = {path for path in (REPOSITORY / "docs").rglob("*") if path.is_file()}
    assert not every - reached, sorted(map(str, every - reached))
