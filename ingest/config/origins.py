"""Where settings come from: a TOML file, the environment, flags, and files for the secrets.

`gather` returns what was written, and where; loading.py checks the values.
Promises: a ConfigError names the origin, and never shows the content of a secret's file.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any

from ingest.config.values import ENV_PREFIX, checked, env_name, flag_name, full_path, nearest
from ingest.model.errors import ConfigError

SECRET_BYTES_MAX = 16_384
TOML_BYTES_MAX = 1_048_576
SECRET_FILES = {
    each: f"{each}_file"
    for each in ("database_url", "admin_token", "broker_url", "housekeeping_url")
}
Found = dict[str, tuple[Any, str]]  # setting -> the value as it was written, and its origin

# INGEST_ variables that are no settings: a few of our own, and those that Kubernetes adds to every
# pod if a service has the name `ingest`.
_NOT_OURS = re.compile(
    r"INGEST_(CONFIG|COMMAND|COMMAND_(DOWN|RESTART|LOG)|PUBLISHED_AT|PG_BIN|MQTT_PASSWORD"
    r"|MQTT_TOKEN|TEST_\w+|SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)\w*)?)"
)


class UnusableFile(ConfigError):
    """A file of settings cannot be used. `why` goes on behind the file's name, or another one."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}")
        self.why = why


def gather(
    known: Mapping[str, Field[Any]],
    toml_path: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, str],
) -> Found:
    """Return what the origins say; a later one wins. The files of secrets have been read."""
    found: Found = {}
    if toml_path is not None:
        _merge(found, _of_toml(toml_path, known))
    _merge(found, _of_environment(environ, known))
    _merge(found, {name: (value, flag_name(name)) for name, value in flags.items()})
    for name, by_file in SECRET_FILES.items():
        _read_secret_file(found, name, known[by_file])
    return found


def _of_toml(path: Path, known: Mapping[str, Field[Any]]) -> Found:
    written = read_toml(path, "settings")
    for name in written:
        if name in {"source", "table"}:
            raise ConfigError(f"{path}: {name}s have a file of their own: setting {name}s_file")
        if name not in known:
            raise ConfigError(f"{path}: there is no setting {name!r}{nearest(name, known)}")
    return {name: (value, str(path)) for name, value in written.items()}


def _of_environment(environ: Mapping[str, str], known: Mapping[str, Field[Any]]) -> Found:
    found: Found = {}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or not text or _NOT_OURS.fullmatch(variable):
            continue
        name = variable.removeprefix(ENV_PREFIX).lower()
        if name not in known or variable != env_name(name):
            near = nearest(name, known, env_name)
            raise ConfigError(f"the environment has {variable}, which is no setting{near}")
        found[name] = (text, variable)
    return found


def _merge(found: Found, later: Found) -> None:
    """Let a later source win. A secret, and the file that contains it, replace each other."""
    for name, by_file in SECRET_FILES.items():
        secret, file = later.get(name), later.get(by_file)
        if secret and secret[0] and file and file[0]:
            raise ConfigError(f"of {name} ({secret[1]}) and {by_file} ({file[1]}) set one")
        if secret:
            found.pop(by_file, None)
        if file and file[0]:
            found.pop(name, None)
    found |= later


def _read_secret_file(found: Found, name: str, declared: Field[Any]) -> None:
    value, origin = found.get(declared.name, ("", ""))
    if not value:
        return
    try:
        path = full_path(checked(declared, value, origin))
        found[name] = (read_secret(path), str(path))
    except ConfigError as error:
        raise ConfigError(f"setting {declared.name} ({origin}): {error}") from None


def _read_file(path: Path, bytes_max: int) -> bytes:
    """Return the first bytes of a file; of a pipe, the bytes until its writers have closed it.

    Opening a named pipe waits until somebody opens it for writing. O_NONBLOCK prevents that wait,
    for a pipe that nobody writes. A pipe that has a writer, as a shell's <(..), is then read with
    waiting.
    """
    try:
        with open(path, "rb", opener=lambda name, how: os.open(name, how | os.O_NONBLOCK)) as file:
            os.set_blocking(file.fileno(), True)
            return file.read(bytes_max)
    except OSError as error:
        raise UnusableFile(path, f"cannot be read: {error.strerror}") from error


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Return what a TOML file has; `what` is what it should have. Raises ConfigError."""
    import tomllib  # noqa: PLC0415  it would add 2 ms to starts without such a file

    raw = _read_file(path, TOML_BYTES_MAX + 1)
    if len(raw) > TOML_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {TOML_BYTES_MAX:,} bytes: no file of {what}")
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except ValueError as error:  # syntax, encoding, a number of 5,000 digits
        raise ConfigError(f"{path} is not TOML: {error}") from error


def read_secret_again(path: Path) -> str:
    """Return the same of a file that may have changed. Of a pipe, there is nothing more."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        raise UnusableFile(path, f"cannot be read: {error.strerror}") from error
    if not regular:
        raise UnusableFile(path, "is no regular file")
    return read_secret(path)


def read_secret(path: Path) -> str:
    """Return the one line of a secret's file, without the line end and blanks around it."""
    raw = _read_file(path, SECRET_BYTES_MAX + 1)
    try:
        text = raw.decode("utf-8-sig").strip()
    except ValueError:
        raise UnusableFile(path, "is not UTF-8 text") from None  # its text would show the secret
    if not text:
        raise UnusableFile(path, "is empty")
    if len(raw) > SECRET_BYTES_MAX or len(text.splitlines()) > 1:
        raise UnusableFile(path, "must hold one line, and nothing else")
    return text
