"""Tests of the files of deploy/ for gateways, writers and nats-servers: they fit each other.

For the rules that all of them must follow see test_deploy.py and test_deploy_kubernetes.py.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from ingest.broker.roles import ROLES as BROKER_ROLES
from ingest.cli.main import build_parser
from ingest.config.broker_url import split_broker_url
from ingest.config.loading import load
from ingest.config.settings import Settings
from tests.support.deployment import (
    DEPLOY,
    REPOSITORY,
    compose_services,
    document,
    image_environment,
    program,
    run,
    shown_in_head,
)

SYSTEMD = DEPLOY / "systemd"
COMMON = SYSTEMD / "iot-ingest-.service.d" / "common.conf"
UNITS = {
    "iot-ingest-up": "up",
    "iot-ingest-gateway@8080": "gateway",
    "iot-ingest-writer@8091": "writer",
    "iot-ingest-forward@billing": "forward",
    "iot-ingest-mqtt@plant": "mqtt",
}
DRAIN_S = Settings().drain_s_max
NATS_FILES = ("nats.conf", "single.conf", "kubernetes.conf")


def ours(environ: dict[str, str]) -> dict[str, str]:
    """Return the variables that are settings, without the files that are not here."""
    return {
        name: value
        for name, value in environ.items()
        if name.startswith("INGEST_") and not name.endswith("_URL_FILE")
    }


# systemd


def unit_file(unit: str) -> Path:
    """Return the file of a unit or of its template."""
    return SYSTEMD / f"{re.sub(r'@.*', '@', unit)}.service"


def lines_of(unit: str) -> list[tuple[str, str]]:
    """Return the keys and values of a unit: its own, then those that all have in common."""
    instance = unit.partition("@")[2]
    text = unit_file(unit).read_text().replace("%i", instance) + COMMON.read_text()
    parts = (each.partition("=") for each in text.splitlines() if not each.startswith("#"))
    return [(name, value) for name, mark, value in parts if mark]


def placed(tmp_path: Path) -> Path:
    """Copy the folder, with the path of a program that exists, since the tool checks it."""
    shutil.copytree(SYSTEMD, tmp_path / "systemd")
    (tmp_path / "home" / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "home" / ".venv" / "bin" / "python").symlink_to(shutil.which("sh") or "/bin/sh")
    for each in (tmp_path / "systemd").rglob("*.*"):
        if each.is_file():
            text = each.read_text().replace("/opt/iot-ingest", str(tmp_path / "home"))
            each.write_text(text)
    return tmp_path / "systemd"


def test_systemd_takes_the_units_and_they_may_do_little(tmp_path: Path) -> None:
    """No warning; exposure as that of iot-ingest.service, by the file that they have in common."""
    analyze = program("systemd-analyze", "systemd")
    folder = placed(tmp_path)
    paths = [folder / f"{unit}.service" for unit in UNITS]
    assert run(analyze, "verify", "--man=no", *paths) == (0, "")
    security = (analyze, "security", "--offline=true", "--no-pager", "--threshold=12")
    code, said = run(*security, *paths)
    assert code == 0, said[-200:]
    common = folder / COMMON.relative_to(SYSTEMD)
    common.write_text(common.read_text().replace("\nSystemCallFilter=@", "\n#"))
    for each in paths:
        assert run(*security, each)[0] != 0, each
    common.write_text(common.read_text().replace("ProtectHome=", "ProtectHom="))
    assert "ProtectHom" in run(analyze, "verify", "--man=no", paths[0])[1]


def test_common_part_is_that_of_the_one_service() -> None:
    """What iot-ingest.service may do, restart and watch: the roles have the same."""
    whole = (DEPLOY / "iot-ingest.service").read_text().splitlines()
    own = {"Documentation=file:///opt/iot-ingest/docs/roles.md"}
    lines = [each for each in COMMON.read_text().splitlines() if "=" in each and each[0] != "#"]
    for line in lines:
        assert line in whole or line.split()[0] in own, line
    section = whole[whole.index("NoNewPrivileges=yes") : whole.index("UMask=0077") + 1]
    assert section == COMMON.read_text().splitlines()[-len(section) :]


@pytest.mark.parametrize("unit", UNITS)
def test_unit_runs_its_role_with_settings_that_exist(unit: str) -> None:
    """Command and variables are ours; each file of a secret is a credential; time for a drain."""
    lines = lines_of(unit)
    keys = dict(lines)
    words = keys["ExecStart"].split()
    assert words[:4] == ["/opt/iot-ingest/.venv/bin/python", "-P", "-m", "ingest"]
    assert words[4] == UNITS[unit]
    build_parser(words[4]).parse_args(words[4:])
    environ = dict(
        each.split("=", 1)
        for name, value in lines
        if name == "Environment"
        for each in shlex.split(value)
    )
    load(environ=ours(environ))
    credentials = [value.partition(":")[0] for name, value in lines if name == "LoadCredential"]
    named = [each.partition("%d/")[2] for each in (*environ.values(), *words) if "%d/" in each]
    assert sorted(named) == sorted(credentials)
    assert ("INGEST_BROKER_URL_FILE" in environ) == (UNITS[unit] not in {"up", "mqtt"})
    assert ("INGEST_DATABASE_URL_FILE" in environ) == (UNITS[unit] in {"up", "writer"})
    assert int(keys["TimeoutStopSec"]) > (4 if UNITS[unit] == "up" else 2) * DRAIN_S
    assert keys["Type"] == "notify"
    assert keys["KillMode"] == "mixed", "the supervisor alone gets SIGTERM"
    assert ("ExecReload" in keys) == (unit == "iot-ingest-up")


@pytest.mark.parametrize("unit", UNITS)
def test_head_of_the_unit_makes_the_files_that_it_needs(unit: str) -> None:
    """Copies exist; each credential of its own is written before the unit is started."""
    steps = [each for each in shown_in_head(unit_file(unit)) if each]
    commands = [each for each in steps if not re.fullmatch(r"INGEST_\w+=\S+", each[0])]
    for words in commands:
        if words[0] == "cp":
            assert all((REPOSITORY / each).exists() for each in words[1:-1] if each[0] != "-")
            assert str(COMMON.parent.relative_to(REPOSITORY)) in words
    assert commands[-1][:3] == ["systemctl", "enable", "--now"]
    assert unit in commands[-1]
    written = " ".join(" ".join(each) for each in commands)
    files = [value.partition(":")[2] for name, value in lines_of(unit) if name == "LoadCredential"]
    for each in set(files) - {"/etc/iot-ingest/database_url"}:  # as for iot-ingest.service
        assert f"> {each} " in written, each
    for (line,) in (each for each in steps if each not in commands):
        load(environ=dict([line.split("=", 1)]))


# nats-server


@pytest.mark.parametrize("name", NATS_FILES)
def test_nats_server_syncs_each_message_and_lets_in_the_roles(name: str) -> None:
    """Each configuration has what the service relies on."""
    text = (DEPLOY / "nats" / name).read_text()
    for line in ("sync_interval: always", "max_payload: 8MB", 'include "roles.conf"'):
        assert re.search(rf"^ *{line}", text, re.MULTILINE), line


def test_three_pods_and_three_machines_have_the_same_settings() -> None:
    """The two configurations differ in names and sizes only."""

    def settings(name: str) -> list[str]:
        lines = (DEPLOY / "nats" / name).read_text().splitlines()
        texts = (each.partition("#")[0].strip() for each in lines)
        own = ("server_name", "routes", "max_file")
        return [each for each in texts if each and not each.startswith(own)]

    assert settings("kubernetes.conf") == settings("nats.conf")


# Compose


def test_each_role_of_compose_has_its_own_secrets_and_settings_that_exist() -> None:
    """A role sees the password of its own user only; all have the monitor port of the server."""
    services = compose_services("compose.roles.yaml")
    for name, user in (
        ("stream", "admin"),
        ("gateway", "gateway"),
        ("writer", "writer"),
        ("forward", "forward"),
    ):
        service = services[name]
        environ = {**image_environment(), **service["environment"]}
        secrets = {f"/run/secrets/{each}" for each in service["secrets"]}
        assert environ["INGEST_BROKER_URL_FILE"] == f"/run/secrets/broker_{user}_url"
        files = {value for each, value in environ.items() if each.endswith("_URL_FILE")}
        words = [each.replace("${FORWARDS:-none}", "billing") for each in service["command"]]
        files |= {each for each in words if each.startswith("/run/secrets/")}
        assert files == secrets
        given = ours({each: value.replace("${FORWARDS:-}", "") for each, value in environ.items()})
        load(environ=given)
        build_parser(words[0]).parse_args(words)
        monitors = set() if name == "forward" else {"http://nats:8222"}
        assert {v for k, v in given.items() if k == "INGEST_BROKER_MONITOR_URL"} == monitors
        assert "broker" in service["networks"]
    assert services["nats"]["networks"] == ["broker"]
    assert not {"gateway", "forward", "stream"} & {
        name for name, each in services.items() if "database" in each["networks"]
    }


def test_prometheus_of_compose_finds_each_role() -> None:
    """It asks DNS for services that share a network with it, at their admin port."""
    services = compose_services("compose.roles.yaml")
    (job,) = document(DEPLOY / "prometheus.roles.yml")["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert job["job_name"] == "iot-ingest"
    assert str(found["port"]) == image_environment()["INGEST_ADMIN_LISTEN"].rpartition(":")[2]
    watched = {
        name
        for name, each in services.items()
        if "watching" in each["networks"] and each["image"].startswith("iot-ingest:")
    }
    assert set(found["names"]) == watched == {"gateway", "writer", "forward"}
    mounts = dict(each.split(":")[1::-1] for each in services["prometheus"]["volumes"])
    assert mounts["/etc/prometheus/prometheus.yml"] == "./prometheus.roles.yml"
    assert mounts["/etc/prometheus/alerts.yml"] == "./alerts.yml"


def test_passwords_of_the_broker_are_those_in_the_urls(tmp_path: Path) -> None:
    """Each user of roles.conf gets one; the URLs name the servers that BROKER names."""
    script = Path(shutil.copy(DEPLOY / "make-secrets", tmp_path))
    hosts = "nats-0.nats:4222,nats-1.nats:4222"
    code, said = run("env", f"BROKER={hosts}", script, cwd=tmp_path)
    assert code == 0, said
    made = {each.name: each.read_text() for each in (tmp_path / "secrets").iterdir()}
    listed = dict(re.findall(r'^(\w+): "(\w{48})"$', made["broker_passwords"], re.MULTILINE))
    assert listed.keys() == {f"{each.upper()}_PASSWORD" for each in BROKER_ROLES}
    assert len(set(listed.values())) == len(BROKER_ROLES)
    for role in BROKER_ROLES:
        found = split_broker_url(made[f"broker_{role}_url"].strip())
        assert found[0] == tuple(f"nats://{each}" for each in hosts.split(","))
        assert found[1:] == (role, listed[f"{role.upper()}_PASSWORD"])
    code, said = run(script, cwd=tmp_path)
    assert (code, "does not name BROKER=nats:4222" in said) == (2, True)
    (tmp_path / "secrets" / "broker_writer_url").unlink()
    assert run("env", f"BROKER={hosts}", script, cwd=tmp_path)[0] == 0
    assert made == {each.name: each.read_text() for each in (tmp_path / "secrets").iterdir()}
