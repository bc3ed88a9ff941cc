"""Tests of the files under deploy/: each is valid for its reader, and they agree with each other.

They are checked with the tools that read such files (promtool, hadolint, systemd-analyze, the
schema of Compose), and against the service itself: its settings, metrics, ports. For Kubernetes see
test_deploy_kubernetes.py.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from compose_spec import PyCompose

from ingest.app.metrics import own_metrics
from ingest.cli.main import COMMANDS, build_parser, main
from ingest.config.loading import load
from ingest.config.settings import Settings
from ingest.embedded.server import SETTINGS as EMBEDDED
from ingest.model import verdict
from ingest.model.ledger import Ledger
from ingest.sinks.postgres import sqlstate
from ingest.writer import breaker
from loadgen.cli.main import parser as loadgen_parser
from tests.support.deployment import (
    DASHBOARD,
    DEPLOY,
    OF_PROMETHEUS,
    REPOSITORY,
    Query,
    alerts,
    compose_services,
    copy_of,
    dockerfile,
    document,
    documents,
    exported,
    grouped_by,
    image_environment,
    packaged_program,
    panels,
    program,
    queries,
    run,
    selected,
    shown_in_head,
    uncommented,
)
from tests.support.documents import OPERATING, fences

YAML_FILES = sorted(each for kind in ("*.yml", "*.yaml") for each in DEPLOY.rglob(kind))
UNIT = DEPLOY / "iot-ingest.service"
DRAIN_S = Settings().drain_s_max
RUNBOOK_BASE = "https://runbook.example/"
_ANCHOR = re.compile(r"^## (\w+)$", re.MULTILINE)


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda each: str(each.relative_to(DEPLOY)))
def test_yaml_file_is_yaml_and_repeats_no_key(path: Path) -> None:
    """Most readers silently take the last of two equal keys."""
    assert documents(path)
    for text in path.read_text().split("\n---\n"):
        top = re.findall(r"^([\w-]+):", text, re.MULTILINE)
        assert [key for key, count in Counter(top).items() if count > 1] == []


# Prometheus


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus.roles.yml", "prometheus.mqtt.yml"])
def test_prometheus_takes_its_configuration_and_the_alerts(name: str) -> None:
    """Also the rule file that the configuration names."""
    code, said = run(program("promtool", "prometheus"), "check", "config", name)
    assert code == 0, said
    assert f"{len(alerts())} rules found" in said


def test_prometheus_takes_the_alertmanager_that_its_comment_shows(tmp_path: Path) -> None:
    """The file names none, as the documents say; without the # its comment is valid."""
    assert "alerting" not in document(DEPLOY / "prometheus.yml")
    assert "**As it stands nobody is paged**" in OPERATING
    text = uncommented(DEPLOY / "prometheus.yml", "alerting:")
    placed = copy_of(tmp_path, "prometheus.yml", "", "")
    placed.write_text(text)
    code, said = run(program("promtool", "prometheus"), "check", "config", placed)
    assert code == 0, said
    (named,) = document(placed)["alerting"]["alertmanagers"]
    assert named["static_configs"][0]["targets"]


def test_one_command_leads_every_alert_to_the_readers_own_runbook(tmp_path: Path) -> None:
    """The command of docs/operating.md changes all links of a copy, and nothing else."""
    (command,) = (each.text for each in fences(OPERATING) if RUNBOOK_BASE[:-1] in each.text)
    path = copy_of(tmp_path, "alerts.yml", RUNBOOK_BASE, RUNBOOK_BASE)
    before = {each: each.read_text() for each in path.parent.rglob("*.y*ml")}
    code, said = run("sh", "-euc", command, cwd=tmp_path)
    assert (code, said) == (0, "")
    new = command.split("|")[2]
    for each, text in before.items():
        assert each.read_text() == text.replace(RUNBOOK_BASE[:-1], new)
    changed = {each.name for each, text in before.items() if each.read_text() != text}
    assert changed == {"alerts.yml", "alerts_test.yml"}
    keep_cases_of("IngestDown", path.parent)
    promtool = program("promtool", "prometheus")
    code, said = run(promtool, "test", "rules", "alerts_test.yml", cwd=path.parent)
    assert code == 0, said


def keep_cases_of(alert: str, folder: Path) -> None:
    """Leave only the tests of one alert: all of them take seconds."""
    path = folder / "alerts_test.yml"
    whole = document(path)
    whole["tests"] = cases_of(alert, whole["tests"])
    path.write_text(json.dumps(whole))


def cases_of(alert: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tests of one alert; none is an error."""
    found = [
        case
        for case in cases
        if any(rule["alertname"] == alert for rule in case["alert_rule_test"])
    ]
    assert found
    return found


def test_metrics_are_named_as_prometheus_wants_them() -> None:
    """All metrics of ours follow promtool's rules of names and units."""
    text = b"".join(
        line
        for line in own_metrics(Ledger()).text().splitlines(keepends=True)
        if b"ingest_" in line.split(b"{")[0]
    )
    promtool = program("promtool", "prometheus")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_alerts_fire_and_stay_silent_as_their_tests_say(tmp_path: Path) -> None:
    """promtool plays the series of alerts_test.yml, to each alert those of its own tests.

    With all alerts in one file each test would evaluate all of them, which takes seven times as
    long: see the next test.
    """
    whole = document(DEPLOY / "alerts_test.yml")
    names = []
    for group in document(DEPLOY / "alerts.yml")["groups"]:
        for rule in group["rules"]:
            name = rule["alert"]
            rules = {"groups": [{**group, "rules": [rule]}]}
            (tmp_path / f"{name}.yml").write_text(json.dumps(rules))  # which is YAML too
            own = {**whole, "rule_files": [f"{name}.yml"], "tests": cases_of(name, whole["tests"])}
            (tmp_path / f"{name}_test.yml").write_text(json.dumps(own))
            names.append(f"{name}_test.yml")
    code, said = run(program("promtool", "prometheus"), "test", "rules", *names, cwd=tmp_path)
    assert code == 0, said
    assert said.count("SUCCESS") == len(alerts())


@pytest.mark.slow
def test_command_of_the_file_of_tests_plays_all_of_them() -> None:
    """The command in its head, with the files as they stand."""
    promtool = program("promtool", "prometheus")
    (command,) = re.findall(r"`promtool (.*?)`", (DEPLOY / "alerts_test.yml").read_text())
    code, said = run(promtool, *command.split())
    assert code == 0, said


def test_every_alert_is_tested_for_both() -> None:
    """Each alert has a test in which it fires and one in which it does not."""
    fires: Counter[str] = Counter()
    silent: Counter[str] = Counter()
    for case in document(DEPLOY / "alerts_test.yml")["tests"]:
        for rule in case["alert_rule_test"]:
            (fires if rule["exp_alerts"] else silent)[rule["alertname"]] += 1
    names = {rule["alert"] for rule in alerts()}
    assert set(fires) == names
    assert set(silent) == names


def test_altered_bound_of_an_alert_is_noticed(tmp_path: Path) -> None:
    """The tests of the alerts can fail."""
    promtool = program("promtool", "prometheus")
    spoilt = copy_of(tmp_path, "alerts.yml", "used_ratio > 0.8", "used_ratio > 0.95")
    keep_cases_of("IngestBufferFilling", spoilt.parent)
    code, said = run(promtool, "test", "rules", "alerts_test.yml", cwd=spoilt.parent)
    assert code != 0
    assert "IngestBufferFilling" in said


def test_every_alert_has_a_section_of_the_runbook_and_a_severity() -> None:
    """The section says what the alert means, what to check, and what to do."""
    text = (DEPLOY / "RUNBOOK.md").read_text()
    sections = dict(zip(_ANCHOR.findall(text), _ANCHOR.split(text)[2::2], strict=True))
    assert list(sections) == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        name = rule["alert"]
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOK_BASE}RUNBOOK.md#{name.lower()}"
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        marks = [sections[name].find(f"**{each}.**") for each in ("Meaning", "Check", "Act")]
        assert -1 not in marks, name
        assert marks == sorted(marks), name


def test_runbook_names_settings_commands_and_reasons_that_exist() -> None:
    """Each setting, command and reason in the runbook exists."""
    text = (DEPLOY / "RUNBOOK.md").read_text()
    for target in re.findall(r"\]\(#(\w+)\)", text):
        assert target in {each.lower() for each in _ANCHOR.findall(text)}
    known = set(Settings.__dataclass_fields__)
    for name in re.findall(r"`([a-z]+_[a-z_]+_(?:max|min|s|bytes|rows|days))`", text):
        assert name in known, name
    for word, second in re.findall(r"`ingest (?!psql)([a-z]+)(?: ([a-z]+))?", text):
        assert word in COMMANDS, word
        with pytest.raises(SystemExit) as ended:  # a wrong command returns an error
            main([word, *([second] if second else []), "--help"])
        assert ended.value.code == 0, f"ingest {word} {second}"
    hold = text[text.index("## IngestOnHold") : text.index("## IngestDatabaseDown")]
    rows = re.findall(r"^\| (`.*?) \|", hold, re.MULTILINE)
    named = {each for row in rows for each in re.findall(r"`(\w+)`", row)}
    sources = "".join(each.read_text() for each in (REPOSITORY / "ingest").rglob("*.py"))
    written = set(re.findall(r'Verdict\.HOLD, .*reason="(\w+)"', sources))
    own = {verdict.CONFIGURATION, verdict.NOT_DURABLE, verdict.LETTERS_FULL, breaker.BREAKER}
    reasons = {*sqlstate.REASONS.values(), *own, *written} - {verdict.TOO_MANY_CONNECTIONS}
    assert named == reasons


# PromQL


@pytest.mark.parametrize("query", queries(), ids=lambda each: each.where)
def test_expression_asks_only_for_what_is_exported(query: Query) -> None:
    """All names and labels in expressions are exported."""
    known = exported() | OF_PROMETHEUS
    asked = selected(query.expr)
    assert asked
    for name, labels in asked:
        assert name in known, f"{query.where} asks for {name}"
        assert labels <= known[name], f"{query.where}: {name} has no {labels - known[name]}"
        assert grouped_by(query.expr) <= known[name], f"{query.where}: {name}"


def test_unknown_metric_and_label_would_be_noticed() -> None:
    """The check above can fail."""
    assert "ingest_readings_eaten_total" not in exported()
    assert exported()["ingest_hold"] == {"reason", "job", "instance"}
    assert exported()["ingest_flush_duration_seconds_bucket"] >= {"method", "le"}
    (asked,) = selected('sum by (x) (rate(a_total{b="1",c=~"$job"}[$__rate_interval]))')
    assert (asked.name, asked.labels) == ("a_total", frozenset({"b", "c"}))
    assert grouped_by("sum by (x) (max by (y) (a))") == {"x", "y"}
    with pytest.raises(ValueError, match="parenthesis"):
        selected("sum(rate(a[5m])")


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    """Each metric of ours has a panel."""
    asked = {name for query in queries() for name, _labels in selected(query.expr)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported()}
    unseen = {name for name in ours - families if name.startswith("ingest_")}
    # Nothing to draw; and what ingest_buffer_used_ratio and ingest_readings_held say better:
    # rows may be on the disk too.
    assert unseen <= {
        "ingest_build_info",
        "ingest_buffer_rows",
        "ingest_buffer_rows_max",
        "ingest_readings_accepted_total",
    }


# Grafana


def test_dashboard_is_laid_out_without_overlap_and_names_no_data_source() -> None:
    """Every panel and variable takes the chosen data source, so any Grafana can import it."""
    board = json.loads(DASHBOARD.read_text())
    everything = board["panels"]
    assert len({each["id"] for each in everything}) == len(everything)
    cells = [
        {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        for g in (each["gridPos"] for each in everything)
    ]
    assert all(not a & b for a, b in combinations(cells, 2))
    assert all(0 <= x < 24 for each in cells for x, _y in each)
    source, *others = board["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == (
        *("datasource", "datasource", "prometheus"),
    )
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert panel["datasource"] == chosen, panel["title"]
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"].keys() & {"unit", "mappings"}, panel["title"]
        assert all(each["datasource"] == chosen for each in panel["targets"])
    assert all(each["datasource"] == chosen for each in (*others, *board["annotations"]["list"]))


def test_grafana_finds_the_dashboard_and_its_data_source() -> None:
    """The paths of the provisioning files are those that compose.yaml mounts."""
    provisioning = DEPLOY / "grafana" / "provisioning"
    (provider,) = document(provisioning / "dashboards" / "iot-ingest.yaml")["providers"]
    (source,) = document(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    (table,) = document(provisioning / "datasources" / "postgres.yaml")["datasources"]
    services = document(DEPLOY / "compose.yaml")["services"]
    mounts = dict(each.split(":")[:2] for each in services["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/{DASHBOARD.name}"
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    scrape = document(DEPLOY / "prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
    assert set(services["grafana"]["networks"]) & set(services["timescaledb"]["networks"])
    assert table["url"] == "timescaledb:5432"
    assert table["jsonData"]["database"] == services["timescaledb"]["environment"]["POSTGRES_DB"]
    assert f"create role {table['user']} login" in (DEPLOY / "timescaledb-init.sh").read_text()
    secret = table["secureJsonData"]["password"].removeprefix("$__file{/run/secrets/").rstrip("}")
    assert {secret} <= {*services["grafana"]["secrets"]} & {*services["timescaledb"]["secrets"]}


def test_device_dashboard_names_no_data_source_and_overlaps_nothing() -> None:
    """It takes the chosen data source; device and metric are variables of its queries."""
    board = json.loads((DASHBOARD.parent / "device.json").read_text())
    panels = board["panels"]
    chosen = {"type": "grafana-postgresql-datasource", "uid": "${datasource}"}
    assert all(each["datasource"] == chosen for each in (*panels, *board["templating"]["list"][1:]))
    assert [each["name"] for each in board["templating"]["list"]] == [
        "datasource",
        "device",
        "metric",
    ]
    cells = [
        {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        for g in (each["gridPos"] for each in panels)
    ]
    assert all(not a & b for a, b in combinations(cells, 2))
    for panel in panels:
        assert "${device:sqlstring}" in panel["targets"][0]["rawSql"]  # quoted by Grafana
        assert "$__timeFilter(ts)" in panel["targets"][0]["rawSql"]


# The image and Compose


def test_dockerfile_satisfies_hadolint() -> None:
    """hadolint has no finding, with all of its rules."""
    code, said = run(packaged_program("hadolint"), "Dockerfile")
    assert (code, said) == (0, "")


def test_hadolint_would_notice(tmp_path: Path) -> None:
    """The installed linter finds a fault, so the check can fail."""
    spoilt = copy_of(tmp_path, "Dockerfile", "USER 10001:10001", "USER root\nRUN cd /tmp")
    code, said = run(packaged_program("hadolint"), spoilt)
    assert code != 0
    assert "DL3003" in said


def test_image_runs_as_nobody_in_particular_and_holds_only_the_service() -> None:
    """The user is a number (Kubernetes cannot check a name for root); ports and folder agree."""
    last = {each.word: each.text for each in dockerfile()[-1]}
    assert last["USER"] == "10001:10001"
    environ = image_environment()
    ours = {name: value for name, value in environ.items() if name.startswith("INGEST_")}
    settings = load(environ=ours).settings
    assert last["VOLUME"] == settings.state_dir == last["WORKDIR"]
    ports = [each.rpartition(":")[2] for each in (settings.listen, settings.admin_listen)]
    assert last["EXPOSE"].split() == ports
    assert ports[1] in last["HEALTHCHECK"]
    assert all("://" not in each.text for stage in dockerfile() for each in stage)
    copied = [each.text.split() for each in dockerfile()[0] if each.word == "COPY"]
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {each.removeprefix("!") for each in ignored if each.startswith("!")}
    assert kept == {each for words in copied for each in words[:-1]}
    assert "*" in ignored


COMPOSE_FILES = ("compose.yaml", "compose.roles.yaml", "compose.mqtt.yaml")


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_compose_file_fits_the_specification(name: str) -> None:
    """Each key and value is one that the Compose specification knows."""
    written = document(DEPLOY / name)
    PyCompose.from_json(json.dumps(written)).validate()
    PyCompose.from_json(json.dumps({**written, "services": compose_services(name)})).validate()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("stop_grace_period: 45s", "stop_grace: 45s"),
        ("condition: service_healthy", "condition: healthy"),
        ("secrets: [admin_url]", "secrets: [root_url]"),
        ("networks: [database]", "networks: [nowhere]"),
        ("restart: unless-stopped", "restart: sometimes"),
    ],
)
def test_compose_specification_would_notice(tmp_path: Path, old: str, new: str) -> None:
    """The check above can fail."""
    spoilt = document(copy_of(tmp_path, "compose.yaml", old, new))
    with pytest.raises(ValueError):  # noqa: PT011  the words are the package's
        PyCompose.from_json(json.dumps(spoilt)).validate()


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    """Give the services of compose.yaml."""
    return compose_services("compose.yaml")


PATH_OF_READINGS = {"ingest", "nats", "gateway", "writer", "forward", "mqtt", "timescaledb"}


def is_local(port: str | dict[str, Any]) -> bool:
    """Whether a published port is on the loopback."""
    return (port if isinstance(port, str) else port["host_ip"] + ":").startswith("127.0.0.1:")


@pytest.mark.parametrize("file", COMPOSE_FILES)
def test_compose_services_are_bounded_and_closed(file: str) -> None:
    """Limits, no new privileges, a bounded log, a pinned image, ports on the loopback only.

    A limit of more than one CPU is an error on a machine that has one.
    """
    for name, service in compose_services(file).items():
        limits = service["deploy"]["resources"]["limits"]
        assert limits.keys() >= {"memory", "pids"}, name
        assert ("cpus" in limits) == (name not in PATH_OF_READINGS), name
        assert float(limits.get("cpus", 1)) <= 1, name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]+", service["image"]), name
        assert service["image"].count("/") <= 1, "a short name, of no particular registry"
        assert all(map(is_local, service.get("ports", []))), name
        own = "build" in service  # the Dockerfile has a HEALTHCHECK
        assert "healthcheck" in service or own, name
        if name != "timescaledb":
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name


@pytest.mark.parametrize("file", COMPOSE_FILES)
def test_compose_mounts_what_is_there(file: str) -> None:
    """A missing file would be mounted as an empty folder."""
    for name, service in compose_services(file).items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name}: {source}"
                assert mount.endswith(":ro"), f"{name}: {source}"


def test_compose_settings_are_settings(services: dict[str, Any], tmp_path: Path) -> None:
    """The service knows each variable of the containers; the URL comes from a granted secret."""
    for name in ("ingest", "schema"):
        service = services[name]
        environ = {**image_environment(), **service["environment"]}
        mounted = Path(environ["INGEST_DATABASE_URL_FILE"])
        assert mounted.parent == Path("/run/secrets")
        assert mounted.name in service["secrets"]
        (tmp_path / "url").write_text("postgresql://x@y/z")
        environ["INGEST_DATABASE_URL_FILE"] = str(tmp_path / "url")
        ours = {each: value for each, value in environ.items() if each.startswith("INGEST_")}
        load(environ=ours)
        build_parser(service.get("command", ["serve"])[0]).parse_args(
            service.get("command", ["serve"])
        )
    loadgen_parser().parse_args(services["fleet"]["command"])
    assert int(services["ingest"]["stop_grace_period"].removesuffix("s")) > DRAIN_S + 10
    (job,) = document(DEPLOY / "prometheus.yml")["scrape_configs"]
    assert job["job_name"] == "iot-ingest"
    assert job["static_configs"] == [{"targets": ["ingest:8081"]}]
    shared = set(services["ingest"]["networks"])
    assert shared & set(services["prometheus"]["networks"])
    assert shared & set(services["timescaledb"]["networks"])
    assert not set(services["fleet"]["networks"]) & set(services["timescaledb"]["networks"])


def test_simulated_fleet_is_shown_only_beside_a_table_of_its_own() -> None:
    """Its command sets another project name, so it does not write into the real devices' table."""
    shown = shown_in_head(DEPLOY / "compose.yaml")
    texts = [each.text for each in fences(OPERATING) if "docker compose" in each.text]
    shown += [shlex.split(line, comments=True) for text in texts for line in text.splitlines()]
    demos = [each for each in shown if "demo" in each]
    assert len(demos) == 4
    usual = document(DEPLOY / "compose.yaml")["name"]
    for words in demos:
        own = words[words.index("--project-name") + 1]
        assert own not in {usual, "--profile"}, words
    assert [each for each in shown if each and each not in demos], "and the usual way"


def test_head_of_the_dockerfile_keeps_what_a_container_holds() -> None:
    """A named volume on the image's folder, time for a drain, local ports, free space for WAL."""
    build, token, start = shown_in_head(DEPLOY / "Dockerfile")
    assert start[-1] == build[build.index("-t") + 1]
    assert " ".join(token) == f"{image_environment()['INGEST_COMMAND_DOWN']} token new NAME"
    options = list(pairwise(start))
    given = {name: value for name, value in options if name.startswith("--")}
    last = {each.word: each.text for each in dockerfile()[-1]}
    volume, _, folder = given["--volume"].partition(":")
    assert re.fullmatch(r"[\w-]+", volume), "a name: a path would be a folder of the host"
    assert folder == last["VOLUME"]
    assert int(given["--stop-timeout"]) > DRAIN_S + 10
    published = [value for name, value in options if name == "--publish"]
    assert published == [f"127.0.0.1:{each}:{each}" for each in last["EXPOSE"].split()]
    name, _, value = given["--env"].partition("=")
    assert leaves_room_for_the_database(load(environ={name: value}).settings)


@pytest.mark.parametrize("path", [DEPLOY / "Dockerfile", *YAML_FILES], ids=lambda each: each.name)
def test_file_that_names_a_command_names_all_of_its_words(path: Path) -> None:
    """Else some messages would name the commands of another way to run it, of the image or so."""
    text = path.read_text()
    count = {
        word: len(re.findall(rf"\bINGEST_COMMAND{word}\b[:=,\n]", text))
        for word in ("", "_DOWN", "_RESTART", "_LOG")
    }
    assert len({*count.values()}) == 1, count
    if "kubernetes" in path.parts:
        assert text.count('INGEST_PUBLISHED_AT, value: ""') == count[""]


def leaves_room_for_the_database(settings: Settings) -> bool:
    """Whether the embedded database can still start on a disk that the service calls full."""
    wal = EMBEDDED["max_wal_size"]
    assert wal.endswith("GB")
    return settings.disk_free_bytes_min >= 2 * int(wal.removesuffix("GB")) * 1024**3


PASSWORDS = ("writer", "admin", "grafana", "reader")


def test_secrets_are_made_once_and_are_those_of_compose(tmp_path: Path) -> None:
    """Passwords differ, other users cannot read them, and a second run changes nothing."""
    script = Path(shutil.copy(DEPLOY / "make-secrets", tmp_path))
    code, said = run(script, cwd=tmp_path)
    assert code == 0, said
    folder = tmp_path / "secrets"
    assert folder.stat().st_mode & 0o077 == 0
    made = {each.name: each.read_text() for each in folder.iterdir()}
    wanted = {
        each["file"]
        for name in COMPOSE_FILES
        for each in document(DEPLOY / name)["secrets"].values()
    }
    of_others = {"./secrets/forward_url", "./secrets/mqtt_password"}
    assert {f"./secrets/{name}" for name in made} == wanted - of_others
    assert len({made[f"{who}_password"] for who in PASSWORDS}) == len(PASSWORDS)
    assert all(len(made[f"{who}_password"].strip()) == 48 for who in PASSWORDS)
    assert made["writer_url"] == (
        f"postgresql://ingest:{made['writer_password'].strip()}@timescaledb:5432/telemetry\n"
    )
    assert made["admin_password"].strip() in made["admin_url"]
    assert run(script, cwd=tmp_path)[0] == 1
    assert made == {each.name: each.read_text() for each in folder.iterdir()}
    # A folder of the time before there was a role for Grafana: Compose would not start with it.
    old = made.pop("reader_password")
    (folder / "reader_password").unlink()
    assert run(script, cwd=tmp_path)[0] == 0
    added = {each.name: each.read_text() for each in folder.iterdir()}
    new = added.pop("reader_password")
    assert (added, len(new.strip())) == (made, 48)
    assert new != old
    assert (folder / "reader_password").stat().st_mode & 0o777 == 0o444


# systemd


def placed_unit(tmp_path: Path, text: str) -> Path:
    """Write the unit with the path of a program that exists, since the tool checks it."""
    home = tmp_path / "opt" / "iot-ingest"
    (home / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    python = home / ".venv" / "bin" / "python"
    if not python.exists():
        python.symlink_to(shutil.which("sh") or "/bin/sh")
    path = tmp_path / UNIT.name
    path.write_text(text.replace("/opt/iot-ingest", str(home)))
    return path


def test_systemd_takes_the_unit_without_a_warning(tmp_path: Path) -> None:
    """Unknown keys and values are warnings to systemd, and failures here."""
    analyze = program("systemd-analyze", "systemd")
    unit = placed_unit(tmp_path, UNIT.read_text())
    keeper = Path(shutil.copy(UNIT.with_suffix(".socket"), tmp_path))
    assert run(analyze, "verify", "--man=no", unit, keeper) == (0, "")
    spoilt = placed_unit(tmp_path, UNIT.read_text().replace("ProtectHome=", "ProtectHom="))
    assert "ProtectHom" in run(analyze, "verify", "--man=no", spoilt)[1]


def test_unit_may_do_little(tmp_path: Path) -> None:
    """systemd's own measure of exposure, in tenths: 96 is a plain service, 0 is nothing at all."""
    analyze = program("systemd-analyze", "systemd")
    unit = placed_unit(tmp_path, UNIT.read_text())
    words = ("security", "--offline=true", "--no-pager", "--threshold=12")
    code, said = run(analyze, *words, unit)
    assert code == 0, said[-200:]
    spoilt = placed_unit(tmp_path, UNIT.read_text().replace("\nSystemCallFilter=@", "\n#"))
    assert run(analyze, *words, spoilt)[0] != 0


def test_head_of_the_unit_has_its_steps_in_an_order_that_works() -> None:
    """The program and the files are there before the unit is started; each step is a real one."""
    *steps, room = shown_in_head(UNIT)
    said = [" ".join(each) for each in steps]
    assert said[-1].startswith("systemctl enable --now")
    unit = UNIT.read_text()
    program_path = re.findall(r"^ExecStart=(\S+)", unit, re.MULTILINE)[0]
    home = program_path.removesuffix("/.venv/bin/python")
    assert said[0] == f"cd {home}"
    assert "./run --version" in said[1]
    user = re.findall(r"^User=(\S+)", unit, re.MULTILINE)[0]
    files = re.findall(r"^(?:EnvironmentFile=-|LoadCredential=\w+:)(\S+)", unit, re.MULTILINE)
    for needed in (f"/{UNIT.name} ", *(f" {each}" for each in files)):
        assert any(needed in f" {each} " for each in said[:-1]), needed
    assert any(each.startswith("useradd") and each.endswith(user) for each in said[:-1])
    for words in steps:
        if words[0] == "cp":
            assert (REPOSITORY / words[1]).is_file(), words
    name, _, value = room[0].partition("=")
    assert leaves_room_for_the_database(load(environ={name: value}).settings)


def test_unit_is_watched_and_stopped_as_the_service_needs() -> None:
    """sd_notify, a watchdog, more time to stop than a drain takes, the URL as a credential."""
    lines = [line.partition("=") for line in UNIT.read_text().splitlines() if "=" in line]
    keys = {name: value for name, _, value in lines if name.isalnum()}
    environ = dict(
        each.split("=", 1)
        for name, _, value in lines
        if name == "Environment"
        for each in shlex.split(value)
    )
    assert keys["Type"] == "notify"
    assert int(keys["WatchdogSec"]) >= 10
    assert int(keys["TimeoutStopSec"]) > DRAIN_S + 10
    credential = keys["LoadCredential"].partition(":")[0]
    assert environ.pop("INGEST_DATABASE_URL_FILE") == f"%d/{credential}"
    ours = {name: value for name, value in environ.items() if name.startswith("INGEST_")}
    load(environ=ours)
    assert int(keys["LimitNOFILE"]) > 2 * load(environ={}).settings.connections_max
