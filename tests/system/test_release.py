"""`./run release`, and its wheel as a packager and a user without a checkout meet it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import time
from pathlib import Path
from zipfile import ZipFile

import pytest

from ingest import __version__
from tests.support.documents import README, fences, marked
from tests.system.checkout import PLAIN_PATH, REPOSITORY, Checkout

WHEEL = f"iot_ingest-{__version__}-py3-none-any.whl"
SDIST = f"iot_ingest-{__version__}.tar.gz"
SBOM = f"iot-ingest-{__version__}.cdx.json"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def said(*words: str | Path, cwd: Path | str = "/", user: int | None = None, **env: str) -> str:
    """Run a program to its end; return its stdout."""
    done = subprocess.run(
        words,
        cwd=cwd,
        env={"HOME": "/nonexistent", "PATH": PLAIN_PATH, **env},
        user=user,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def commit(open_tmp: Path) -> Checkout:
    """Give a clone with one commit."""
    made = Checkout(open_tmp / "release")
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for words in (("init", "-q"), ("add", "--all"), (*who, "commit", "-q", "-m", "all")):
        said("git", *words, cwd=made.folder)
    return made


@pytest.fixture(scope="module")
def dist(commit: Checkout) -> Path:
    """Make a release: of a commit that is green, and of no other."""
    code, _, err = commit.run("release")
    assert code == 2
    assert err.endswith("release: .ci/run has not passed on this commit here: run it first\n")
    ci = (REPOSITORY / ".ci" / "run").read_text()
    note = ci[ci.index("# ./run release asks") : ci.index('echo "ci: all green')]
    said("bash", "-euc", f"commit=$(git rev-parse HEAD)\n{note}", cwd=commit.folder)
    code, _, err = commit.run("release", environ={"DOCKER_HOST": "unix:///nowhere"})
    assert (code, "release: no container engine answers: " in err) == (1, True)
    code, _, err = commit.run("release", "--without-image")
    assert code == 0, err
    return commit.folder / "dist" / __version__


def sums(dist: Path) -> dict[str, str]:
    """Return the checksums of what must be the same each time; all of the release are right."""
    said("sha256sum", "--check", "SHA256SUMS", cwd=dist)
    named = dict(line.split()[::-1] for line in (dist / "SHA256SUMS").read_text().splitlines())
    assert {*named, "SHA256SUMS"} == {path.name for path in dist.iterdir()}
    return {name: named[name] for name in (WHEEL, SDIST, SBOM)}


def test_release_again_has_the_same_bytes(commit: Checkout, dist: Path, tmp_path: Path) -> None:
    """Also of the wheel that somebody makes of the sdist; a change without a commit is refused."""
    first = sums(dist)
    os.utime(commit.folder / "ingest" / "__init__.py")
    kept = dist.parent / "kept"
    kept.touch()
    assert commit.run("release", "--without-image")[0] == 0
    assert sums(dist) == first
    assert {*dist.parent.iterdir()} == {dist, kept}
    said("tar", "-xf", dist / SDIST, cwd=tmp_path)
    epoch = said("git", "log", "-1", "--format=%ct", cwd=commit.folder).strip()
    python = commit.folder / ".venv.release" / "bin" / "python"
    build = (python, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path)
    said(*build, cwd=tmp_path / SDIST.removesuffix(".tar.gz"), SOURCE_DATE_EPOCH=epoch)
    assert (tmp_path / WHEEL).read_bytes() == (dist / WHEEL).read_bytes()
    (commit.folder / "new").touch()
    code, _, err = commit.run("release")
    (commit.folder / "new").unlink()
    assert (code, sums(dist)) == (2, first)
    assert "in no commit" in err


def test_wheel_has_what_a_packager_looks_for(dist: Path) -> None:
    """Licence, typed marker, runbook, extras; no tests, nothing else at the top."""
    info = f"iot_ingest-{__version__}.dist-info"
    with ZipFile(dist / WHEEL) as wheel:
        names = set(wheel.namelist())
        about = wheel.read(f"{info}/METADATA").decode()
    assert f"{info}/licenses/LICENSE" in names
    listed = said("git", "ls-files", "ingest", "loadgen", cwd=REPOSITORY).split()
    assert {name for name in names if not name.startswith(info)} == {*listed, "ingest/RUNBOOK.md"}
    extras = re.findall(r"^Provides-Extra: (\w+)$", about, re.MULTILINE)
    assert extras == ["all", "archive", "embedded", "mqtt", "roles"]


def test_wheel_works_by_the_commands_of_the_readme(
    dist: Path, open_tmp_path: Path, database_url: str
) -> None:
    """In a path with spaces, for another user, who can change no file of it; then it goes away."""
    folder, state = open_tmp_path / "my iot", open_tmp_path / "state"
    folder.mkdir()
    state.mkdir()
    # The tests' server takes root, who installs, and the user that it runs as.
    other = Path(database_url.partition("host=")[2].partition("&")[0]).stat().st_uid
    os.chown(state, other, -1)
    (folder / WHEEL).hardlink_to(dist / WHEEL)
    (block,) = marked("README.md", "test_release.py")
    venv, install, serve = block.splitlines()
    post = next(each.text.strip() for each in fences(README) if each.text.startswith("curl"))
    post += "?ack=committed"
    said("sh", "-ec", f"{venv}\n{install}", cwd=folder)
    site = next((folder / "venv").glob("lib/*/site-packages"))
    said("chmod", "-R", "a-w", site)
    before = sorted(site.rglob("*"))
    bin_of = folder / "venv" / "bin"
    version = said(bin_of / "python", "-m", "ingest", "--version", user=other)
    assert version == said(bin_of / "ingest", "--version", user=other) == f"ingest {__version__}\n"
    assert "usage: loadgen" in said(bin_of / "loadgen", "--help", user=other)
    assert "./run" not in said(bin_of / "ingest", "--help", user=other)

    words = [*shlex.split(serve)[:-1], database_url]
    service = subprocess.Popen(
        [*words, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
        cwd=folder,
        env={"PATH": PLAIN_PATH, "INGEST_STATE_DIR": str(state), "INGEST_DATABASE_UNSAFE": "true"},
        user=other,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        published = state / "service.json"
        while not published.exists() and service.poll() is None:
            time.sleep(0.05)
        assert service.returncode is None, service.communicate()[0]
        about = json.loads(published.read_text())
        post = post.replace("127.0.0.1:8080", about["listen"])
        answer = json.loads(said("sh", "-c", f"{post} --silent --fail --retry 30 --retry-delay 1"))
        assert (answer["accepted"], answer["ack"]) == (1, "committed")
        pages = (f"{about['admin_listen']}/runbook.md", f"{about['listen']}/openapi.json")
        said("curl", "--silent", "--fail", *pages)
    finally:
        service.terminate()
        output, _ = service.communicate(timeout=60)
    assert service.returncode == 0, output
    assert "./run" not in output
    assert sorted(site.rglob("*")) == before

    said("chmod", "-R", "u+w", site)
    said(bin_of / "python", "-m", "pip", "uninstall", "--yes", "iot-ingest")
    left = said("find", ".", cwd=folder / "venv").splitlines()
    assert [path for path in left if "ingest" in path or "loadgen" in path] == []
