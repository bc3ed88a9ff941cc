"""The causes in words: each one that the code knows has a text, a next step and a section."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest

from ingest.app.health import UNREADY
from ingest.app.metrics_and_causes import CAUSE_LISTS, CAUSES, advice, cause_of, next_step
from ingest.config.settings import Settings
from ingest.model import causes as verdict
from ingest.model.causes import FIELDS
from ingest.sinks.postgres.sqlstate import REASONS
from ingest.system.words import command_words
from ingest.writer.database_state import BREAKER
from tests.support.documents import REPOSITORY

SECTIONS = re.findall(
    r"^## (\w+)", (REPOSITORY / "deploy" / "RUNBOOK.md").read_text(), re.MULTILINE
)


def test_every_reason_of_the_writer_and_every_state_is_a_cause() -> None:
    """Else an operator would read "an error that the service does not know"."""
    named = ((name, value) for name, value in vars(verdict).items() if isinstance(value, str))
    own = {value for name, value in named if name.isupper() and value.isidentifier()}
    assert {*REASONS.values(), *own, *UNREADY, BREAKER, "slowed"} <= CAUSES.keys()


def test_no_cause_is_written_twice() -> None:
    """Else the second would silently replace the first. No linter sees it behind a constant."""
    assert sum(map(len, CAUSE_LISTS)) == len(CAUSES)


@pytest.mark.parametrize("name", [*CAUSES, "sqlstate_12345"])
def test_cause_has_words_a_next_step_and_a_section(name: str) -> None:
    """The section is in the runbook. Only a stop needs no next step."""
    cause = cause_of(name)
    assert cause.words
    assert not cause.runbook or cause.runbook in {each.lower() for each in SECTIONS}
    assert set(re.findall(r"{(\w+)}", cause.next_step)) <= set(FIELDS)
    step = next_step(name, advice(Settings(), "default"))
    assert bool(step) == bool(cause.runbook) == (name != "draining")
    assert "{" not in step


def test_commands_are_those_of_the_runbook() -> None:
    """Who starts the process says how to type a command; else one would fail in a container."""
    table = (REPOSITORY / "deploy" / "RUNBOOK.md").read_text()
    deploy = REPOSITORY / "deploy"
    for kind, file in (
        ("./run", REPOSITORY / "run"),
        ("docker compose exec ingest python -P -m ingest", deploy / "compose.yaml"),
        ("docker exec {host} python -P -m ingest", deploy / "Dockerfile"),
        (
            "kubectl -n iot-ingest exec {host} -- python -P -m ingest",
            deploy / "kubernetes" / "base" / "statefulset.yaml",
        ),
    ):
        assert kind in file.read_text()
        words = command_words({"INGEST_COMMAND": kind, "INGEST_COMMAND_LOG": "logs {host}"})
        assert words["run"] == words["down"] == kind.replace("{host}", os.uname().nodename)
        assert words["log"] == f"logs {os.uname().nodename}"
        container = "POD" if "kubectl" in kind else "CONTAINER"
        assert f"`{kind.replace('{host}', container)} COMMAND`" in table
    assert command_words({}) == {
        "run": "ingest",
        "down": "ingest",
        "restart": "ingest serve",
        "log": "ingest doctor",
    }
    assert command_words({"INGEST_COMMAND_DOWN": "a"})["down"] == "a"
    # It must not wait for the database, which may be down, too.
    composed = "".join(each.read_text() for each in deploy.glob("compose*.yaml"))
    assert composed.count("COMMAND_DOWN") == composed.count("run --rm --no-deps") == 3


def test_only_an_administrator_may_end_a_process_of_the_database() -> None:
    """The role of the embedded database is one."""
    own, other = (next_step("writes_fail", advice(Settings(database_url=u), "")) for u in ("", "x"))
    assert "`ingest psql -c 'select pg_terminate_backend" in own
    assert '`psql "$ADMIN_URL" -c \'select pg_terminate_backend' in other


@pytest.mark.parametrize(
    ("settings", "origin", "told"),
    [
        ({}, "default", "log of the embedded database"),
        ({"database_url": "x"}, "INGEST_DATABASE_URL", "Correct INGEST_DATABASE_URL, then restart"),
        ({"database_url": "x"}, "--database-url", "Correct --database-url, then restart"),
        ({"database_url": "x"}, "/etc/i.toml", "Correct database_url in /etc/i.toml, then restart"),
        (
            {"database_url": "x", "database_url_file": "/run/url"},
            "/run/url",
            "Correct the file /run/url; the service reads it again",
        ),
        (
            {"database_url": "x", "database_url_file": "/run/credentials/i.service/database_url"},
            "/run/credentials/i.service/database_url",
            "Correct the file that the unit's LoadCredential names, then `",
        ),
    ],
)
def test_wrong_password_names_where_it_was_set(
    settings: dict[str, Any], origin: str, told: str
) -> None:
    """A person at 3 a.m. must not search where the URL comes from."""
    assert told in next_step("authentication", advice(Settings(**settings), origin))
