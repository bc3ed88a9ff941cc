"""`./run` for a new user: a fresh copy, an empty home, and each thing that can be missing."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import commands, marked
from tests.system.checkout import PLAIN_PATH, REPOSITORY, Checkout

CHEAP = ("config", "--print", "listen")
LISTEN = "127.0.0.1:8080\n"
NOWHERE = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0", "UV_NO_CACHE": "1"}
pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def fresh(open_tmp_path: Path) -> Checkout:
    """Give a copy in which nothing has been set up."""
    return Checkout(open_tmp_path)


@pytest.fixture(scope="module")
def untouched(open_tmp: Path) -> Iterator[Checkout]:
    """Give a copy in which nothing has been set up, for tests that set nothing up."""
    made = Checkout(open_tmp / "untouched")
    before = sorted(made.folder.rglob("*"))
    yield made
    assert sorted(made.folder.rglob("*")) == before


@pytest.fixture(scope="module")
def checkout(open_tmp: Path) -> Checkout:
    """Give a copy that its first start has set up; the messages go to stderr only."""
    made = Checkout(open_tmp / "run-script")
    code, out, err = made.run(*CHEAP)
    assert (code, out) == (0, LISTEN), err
    assert "Setting up" in err
    assert "done in" in err
    return made


def test_run_set_up_is_changed_by_nobody_else_and_pinned(checkout: Checkout) -> None:
    """Whatever the umask is, only the owner may write; uv is the one of its lock file."""
    tools = checkout.folder / ".venv.tools"
    for folder in (checkout.venv, tools):
        for path in (folder, *folder.rglob("*")):
            assert path.is_symlink() or not path.stat().st_mode & 0o022, path
    said = subprocess.check_output([tools / "bin" / "uv", "--version"], text=True)
    assert f"\nuv=={said.split()[1]} \\\n" in (REPOSITORY / "requirements-uv.lock").read_text()


def test_run_second_start_is_quiet(checkout: Checkout) -> None:
    """After the set-up a start prints nothing extra, in a path with spaces."""
    assert checkout.run(*CHEAP) == (0, LISTEN, "")


def test_run_help_sets_nothing_up(untouched: Checkout) -> None:
    """The help is printed at once, without a set-up."""
    code, out, err = untouched.run("--help")
    assert (code, err) == (0, "")
    assert "./run demo" in out
    for word in ("check", "test", "release", "containers"):
        code, out, err = untouched.run(word, "--help")
        assert (code, err) == (0, "")
        assert out.startswith(f"  ./run {word} ")
        assert out.count("./run") == 1
    assert not untouched.venv.exists()


@pytest.mark.slow
def test_run_two_at_once_set_up_once(checkout: Checkout) -> None:
    """Of two starts at once the second waits, and uses the set-up of the first."""
    (checkout.venv / "ok").unlink()
    both = [checkout.start(*CHEAP) for _ in range(2)]
    said = [child.communicate(timeout=150) for child in both]
    assert [out for out, _ in said] == [LISTEN] * 2
    assert sum(err.count("Setting up") for _, err in said) == 1


@pytest.mark.slow
def test_run_set_up_killed_half_way_is_done_again(checkout: Checkout) -> None:
    """A set-up that was killed is done again."""
    (checkout.venv / "ok").unlink()
    killed = checkout.start(*CHEAP, environ={"UV_NO_CACHE": "1"})
    assert killed.stderr is not None
    assert "Setting up" in killed.stderr.readline()
    os.killpg(killed.pid, signal.SIGKILL)  # all processes, as a closed terminal does
    killed.communicate()
    assert not (checkout.venv / "ok").exists()
    code, out, err = checkout.run(*CHEAP)
    assert (code, out) == (0, LISTEN), err


def test_run_changed_lock_file_is_followed(checkout: Checkout) -> None:
    """After a change of the lock file the next start installs the new packages."""
    lock = checkout.folder / "requirements.lock"
    lock.write_text(lock.read_text() + "# changed\n")
    code, out, err = checkout.run(*CHEAP)
    assert (code, out) == (0, LISTEN), err
    assert "Setting up" in err
    assert checkout.run(*CHEAP) == (0, LISTEN, "")


def test_run_hostile_environment_changes_nothing(checkout: Checkout, tmp_path: Path) -> None:
    """Python's variables and modules in the current folder have no effect."""
    for name in ("ingest", "json", "asyncio", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    hostile = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nonexistent", "CDPATH": "/:/tmp"}
    assert checkout.run(*CHEAP, cwd=tmp_path, environ=hostile) == (0, LISTEN, "")


def test_run_without_a_word_is_the_service(checkout: Checkout, open_tmp_path: Path) -> None:
    """As in the README. The started process is the service itself: SIGTERM drains it."""
    folder = open_tmp_path / "state"
    (block,) = marked("README.md", "test_run_script.py")
    (words,) = commands(block)
    service = checkout.start(
        *words,
        environ={
            "INGEST_LISTEN": "127.0.0.1:0",
            "INGEST_ADMIN_LISTEN": "127.0.0.1:0",
            "INGEST_STATE_DIR": str(folder),
        },
    )
    state = folder / "service.json"
    end = time.monotonic() + 30
    while not state.exists() and service.poll() is None and time.monotonic() < end:
        signal.sigtimedwait([], 0.05)
    service.send_signal(signal.SIGTERM)
    out, err = service.communicate(timeout=60)
    assert service.returncode == 0, err
    assert "lost=0" in out + err


def test_run_wrong_python_is_named(untouched: Checkout, tmp_path: Path) -> None:
    """A Python that is too old is named with its version; nothing is made."""
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\nexit 1\n')
    old.chmod(0o755)
    code, out, err = untouched.run(*CHEAP, environ={"PYTHON": str(old)})
    assert (code, out) == (2, "")
    assert "3.11 or later" in err
    assert "Python 3.9.2" in err
    code, _, err = untouched.run(*CHEAP, environ={"PYTHON": "no-such-python"})
    assert code == 2
    assert "no-such-python" in err
    assert not untouched.venv.exists()


@pytest.mark.slow
def test_run_without_network_shows_why(fresh: Checkout) -> None:
    """Without a network the set-up says so, shows the last lines and the file of the rest."""
    code, out, err = fresh.run(*CHEAP, environ=NOWHERE)
    assert (code, out) == (2, "")
    assert "The set-up failed. The last lines above say why." in err
    log = fresh.folder / ".venv.tools" / "set-up.log"
    assert str(log) in err
    assert log.read_text().splitlines()[-1] in err
    assert not (fresh.venv / "ok").exists()


def test_run_without_venv_names_the_package(untouched: Checkout, tmp_path: Path) -> None:
    """Debian has venv in a package of its own. Without it nothing is said about a network."""
    python = tmp_path / "python3"
    real = shlex.quote(sys.executable)
    python.write_text(
        f'#!/bin/sh\ncase "$2 $3" in pip* | venv* | *ensurepip) exit 1 ;; esac\nexec {real} "$@"\n'
    )
    python.chmod(0o755)
    code, _, err = untouched.run(
        *CHEAP, environ={"PYTHON": str(python), "RUN_VENV": str(tmp_path / "venv")}
    )
    assert (code, "network" in err) == (2, False), err
    assert err.endswith("needs its module venv, on Debian: apt-get install python3-venv\n")


@pytest.mark.slow
def test_run_as_an_ordinary_user_works(fresh: Checkout) -> None:
    """The owner of the checkout needs no further rights."""
    user = 65534 if os.geteuid() == 0 else os.geteuid()
    for root, _, names in os.walk(fresh.folder.parent.parent):
        for name in (".", *names):
            os.chown(Path(root, name), user, -1)
    child = fresh.start(*CHEAP, user=user if os.geteuid() == 0 else None)
    out, err = child.communicate(timeout=150)
    assert (child.returncode, out) == (0, LISTEN), err


@pytest.mark.slow
def test_run_without_pip_uses_venv(fresh: Checkout, tmp_path: Path) -> None:
    """The set-up works with a Python without pip, and on a machine on which uv fails."""
    python = tmp_path / "python3"
    real = shutil.which("python3", path=PLAIN_PATH)
    python.write_text(f'#!/bin/sh\n[ "$2" != pip ] || exit 1\nexec {real} "$@"\n')
    python.chmod(0o755)
    code, out, err = fresh.run(*CHEAP, environ={"PATH": f"{tmp_path}:{PLAIN_PATH}"})
    assert (code, out) == (0, LISTEN), err
    assert "trying pip" not in err, "uv comes by the pip of an environment"
    (fresh.venv / "ok").unlink()
    uv = fresh.folder / ".venv.tools" / "bin" / "uv"
    uv.write_text("#!/bin/sh\nexit 1\n")
    code, out, err = fresh.run(*CHEAP, environ={"PATH": f"{tmp_path}:{PLAIN_PATH}"})
    assert (code, out) == (0, LISTEN), err
    assert "trying pip" in err


@pytest.mark.slow
def test_run_installs_pyarrow_where_archive_dir_is_set(fresh: Checkout, tmp_path: Path) -> None:
    """By the file of settings, the environment or a flag; a start without it keeps it."""
    settings = tmp_path / "ingest.toml"
    settings.write_text('# archive_dir = "/other"\n')
    assert fresh.run(*CHEAP, "--config", str(settings))[0] == 0
    assert not list(fresh.venv.glob("lib/*/site-packages/pyarrow"))
    settings.write_text('archive_dir = "/srv/cold"\n')
    code, out, err = fresh.run(*CHEAP, "--config", str(settings))
    assert (code, out) == (0, LISTEN), err
    assert "Setting up" in err
    assert list(fresh.venv.glob("lib/*/site-packages/pyarrow"))
    for words, environ in (
        ((), {}),
        (("--archive-dir=/srv/cold",), {}),
        ((), {"INGEST_ARCHIVE_DIR": "/srv/cold"}),
        ((), {"INGEST_CONFIG": str(settings)}),
    ):
        assert fresh.run(*CHEAP, *words, environ=environ) == (0, LISTEN, "")
