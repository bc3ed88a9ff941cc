"""Tests of the examples that run the housekeeping as a job of its own: CronJob, timer, Compose.

tests/system/test_deployed_housekeeping.py runs their command. For the rules that all files of
deploy/ must follow see test_deploy.py and test_deploy_kubernetes.py.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from ingest.config.loading import load
from tests.support.deployment import (
    DEPLOY,
    KUBERNETES,
    ROLES,
    compose_services,
    document,
    environment_of,
    manifest,
    program,
    restricted_faults,
    run,
    secrets_of,
    service_pod,
    shown_in_head,
    uncommented,
)
from tests.support.documents import OPERATING, fences
from tests.support.housekeeping_jobs import (
    CRONJOB,
    FOLDER,
    UNIT,
    cron_pod,
    settings_of_compose,
    settings_of_kubernetes,
    settings_of_systemd,
    unit_lines,
)

SAME = ("INGEST_PARTITION_SPAN", "INGEST_KEEP_HOT", "INGEST_ARCHIVE_DIR")


def test_manifests_fit_the_schema_of_kubernetes_and_a_strict_namespace() -> None:
    """No unknown field; the pod may do little, has a limit, and nobody sends it posts."""
    claim = document(FOLDER / "archive-claim.yaml")
    for each in (CRONJOB, claim):
        kubernetes_validate.validate(each, "1.34", strict=True)
        assert each["metadata"]["namespace"] == "iot-ingest"
    pod = cron_pod()
    assert restricted_faults(pod["spec"]) == set()
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert "memory" in container["resources"]["limits"]
    assert secrets_of(pod) == secrets_of(manifest("Job", "iot-ingest-schema")["spec"]["template"])
    labels = pod["metadata"]["labels"]
    for folder, name in ((KUBERNETES, "iot-ingest"), (ROLES, "iot-ingest-roles")):
        policy = manifest("NetworkPolicy", name, folder)["spec"]["podSelector"]["matchLabels"]
        assert policy.items() <= labels.items()
    own = service_pod()["metadata"]["labels"]["app.kubernetes.io/name"]
    assert labels["app.kubernetes.io/name"] != own
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    archive = environment_of(pod)["INGEST_ARCHIVE_DIR"]
    assert Path(mounts["archive"]) in Path(archive).parents
    volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
    assert volumes.keys() == mounts.keys()
    named = volumes["archive"]["persistentVolumeClaim"]["claimName"]
    assert named == claim["metadata"]["name"]
    url_file = Path(environment_of(pod)["INGEST_HOUSEKEEPING_URL_FILE"])
    assert str(url_file.parent) == mounts["owner"]
    secret = manifest("Secret", secrets_of(pod)[0])
    assert url_file.name in secret["stringData"]
    assert CRONJOB["spec"]["concurrencyPolicy"] == "Forbid"


def test_kustomization_has_the_image_that_the_text_builds() -> None:
    """The image with pyarrow, of the version and the registry of the other folders."""
    own = document(FOLDER / "kustomization.yaml")
    assert set(own["resources"]) | {"kustomization.yaml"} == {
        each.name for each in FOLDER.glob("*.yaml")
    }
    (image,), (other,) = own["images"], document(KUBERNETES / "kustomization.yaml")["images"]
    assert image == {**other, "newTag": f"{other['newTag']}-archive"}
    assert cron_pod()["spec"]["containers"][0]["image"] == image["name"]
    (shown,) = (
        each.text for each in fences(OPERATING) if "-k deploy/kubernetes/housekeeping" in each.text
    )
    tag = f'"$REGISTRY/{image["name"]}:{image["newTag"]}"'
    build, push, *_ = shown.splitlines()
    assert f"--build-arg ARCHIVE=1 -t {tag} ." in build
    assert push == f"docker push {tag}"


def test_documented_yes_is_that_of_the_cronjob() -> None:
    """The job of the text differs from that of the CronJob in `--yes`; its name is right."""
    (shown,) = (each.text for each in fences(OPERATING) if "create job" in each.text)
    assert f"--from=cronjob/{CRONJOB['metadata']['name']} " in shown
    old, new = re.findall(r"sed 's/(.*)/(.*)/'", shown)[0]
    spoken = yaml.safe_dump(cron_pod(), default_style='"')
    (container,) = cron_pod()["spec"]["containers"]
    assert spoken.count(old) == 1
    assert new == f'{old}, "--yes"'
    assert container["args"] == ["housekeeping", "run"]


def test_pods_that_write_leave_the_housekeeping_to_the_job() -> None:
    """Their role does not own the table."""
    for pod in (
        service_pod(),
        manifest("Deployment", "iot-ingest-writer", ROLES)["spec"]["template"],
    ):
        assert environment_of(pod)["INGEST_HOUSEKEEPING"] == "false"
    for file, name in (("compose.yaml", "ingest"), ("compose.roles.yaml", "writer")):
        assert compose_services(file)[name]["environment"]["INGEST_HOUSEKEEPING"] == "false"


@pytest.mark.parametrize(
    "environ",
    [settings_of_kubernetes(), settings_of_systemd(), settings_of_compose()],
    ids=["kubernetes", "systemd", "compose"],
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
