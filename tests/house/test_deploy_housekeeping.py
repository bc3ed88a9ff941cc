"""Tests of the examples that run the housekeeping as a job of its own: timer, Compose.

tests/system/test_deployed_housekeeping.py runs their command. For the rules that all files of
deploy/ must follow see test_deploy.py and test_deploy_kubernetes.py.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]

from ingest.config.loading import load
from tests.support.deployment import (
    DEPLOY,
    compose_services,
    program,
    run,
    shown_in_head,
    uncommented,
)
from tests.support.housekeeping_jobs import (
    UNIT,
    settings_of_compose,
    settings_of_systemd,
    unit_lines,
)

SAME = ("INGEST_PARTITION_SPAN", "INGEST_KEEP_HOT", "INGEST_ARCHIVE_DIR")


def test_containers_that_write_leave_the_housekeeping_to_the_job() -> None:
    """Their role does not own the table. Of pods test_deploy_kubernetes.py says so."""
    for file, name in (("compose.yaml", "ingest"), ("compose.roles.yaml", "writer")):
        assert compose_services(file)[name]["environment"]["INGEST_HOUSEKEEPING"] == "false"


@pytest.mark.parametrize(
    "environ",
    [settings_of_systemd(), settings_of_compose()],
    ids=["systemd", "compose"],
)
def test_each_job_has_the_owners_url_alone_and_settings_that_exist(
    environ: dict[str, str], tmp_path: Path
) -> None:
    """And it archives."""
    url = tmp_path / "url"
    url.write_text("postgresql://owner@host/db")
    assert "INGEST_DATABASE_URL_FILE" not in environ
    assert environ.keys() >= {*SAME, "INGEST_HOUSEKEEPING_URL_FILE"}
    settings = load(environ={**environ, "INGEST_HOUSEKEEPING_URL_FILE": str(url)}).settings
    assert settings.housekeeping_url == url.read_text()
    assert settings.archive_dir.startswith("/")


def test_service_of_compose_can_have_the_same_settings() -> None:
    """By the comment in its environment; the folder of the archive belongs to the image's user."""
    whole = yaml.safe_load(uncommented(DEPLOY / "compose.yaml", "<<: *table"))
    given = whole["services"]["ingest"]["environment"]
    environ = settings_of_compose()
    assert [given[each] for each in SAME] == [environ[each] for each in SAME]
    job = compose_services("compose.yaml")["housekeeping"]
    assert job["profiles"] == ["housekeeping"]
    (mount,) = job["volumes"]
    assert Path(environ["INGEST_ARCHIVE_DIR"]).parent == Path(mount.partition(":")[2])
    assert Path(environ["INGEST_HOUSEKEEPING_URL_FILE"]).name in job["secrets"]
    assert job["build"]["args"] == {"ARCHIVE": "1"}


def test_systemd_takes_unit_and_timer_and_they_may_do_little(tmp_path: Path) -> None:
    """No warning; exposure as that of the service; the section of rights is the same."""
    analyze = program("systemd-analyze", "systemd")
    home = tmp_path / "home"
    (home / ".venv" / "bin").mkdir(parents=True)
    (home / ".venv" / "bin" / "python").symlink_to(shutil.which("sh") or "/bin/sh")
    paths = [tmp_path / UNIT.name, tmp_path / UNIT.with_suffix(".timer").name]
    for path in paths:
        text = (UNIT.parent / path.name).read_text()
        path.write_text(text.replace("/opt/iot-ingest", str(home)))
    assert run(analyze, "verify", "--man=no", *paths) == (0, "")
    security = (analyze, "security", "--offline=true", "--no-pager", "--threshold=12")
    code, said = run(*security, paths[0])
    assert code == 0, said[-200:]
    rights = (DEPLOY / "iot-ingest.service").read_text().split("NoNewPrivileges")[1]
    assert UNIT.read_text().split("NoNewPrivileges")[1] == rights.split("\n\n[Install]")[0] + "\n"
    paths[1].write_text(paths[1].read_text().replace("OnCalendar=hourly", "OnCalendar=hurly"))
    assert "calendar specification" in run(analyze, "verify", "--man=no", paths[1])[1]


def test_head_of_the_unit_makes_the_files_that_it_needs() -> None:
    """Before the timer is started; the settings are in the file that the service reads too."""
    steps = [" ".join(each) for each in shown_in_head(UNIT) if each]
    start = next(n for n, each in enumerate(steps) if each.startswith("systemctl enable --now"))
    assert steps[start].endswith(UNIT.with_suffix(".timer").name)
    keys = dict(unit_lines())
    name, _, file = keys["LoadCredential"].partition(":")
    assert any(f"> {file}" in each for each in steps[:start])
    assert f"chmod 600 {file}" in steps
    copied = next(shlex.split(each) for each in steps if each.startswith("cp "))
    assert all((DEPLOY.parent / each).is_file() for each in copied[1:-1])
    environ = settings_of_systemd()
    assert environ["INGEST_HOUSEKEEPING_URL_FILE"] == f"%d/{name}"
    assert environ["INGEST_HOUSEKEEPING"] == "false"
    assert environ["INGEST_ARCHIVE_DIR"] == f"/var/lib/{keys['StateDirectory']}"
    assert any(
        f"INGEST_ARCHIVE_DIR={environ['INGEST_ARCHIVE_DIR']} ./run" in each for each in steps
    )
    assert keys["Type"] == "oneshot"
