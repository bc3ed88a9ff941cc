"""Where settings come from: a TOML file < the environment < flags; files for the two secrets.

Holds `gather`, which says what was written where; config checks what the values are.
Raises ConfigError that names the source, and never shows what a secret's file holds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any

from ingest.config.values import ENV_PREFIX, checked, env_name, flag_name, full_path, nearest
from ingest.model.errors import ConfigError

SECRET_BYTES_MAX = 16_384
TOML_BYTES_MAX = 1_048_576
SECRET_FILES = {"database_url": "database_url_file", "admin_token": "admin_token_file"}

Found = dict[str, tuple[Any, str]]  # setting -> value as it was written, and where

# What may stand in the environment beside the settings: our own few, and the variables that
# Kubernetes injects into every pod where a service is called `ingest`.
_NOT_OURS = re.compile(
    r"INGEST_(CONFIG|PG_BIN|TEST_\w+|SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)\w*)?)"
)


def gather(
    known: Mapping[str, Field[Any]],
    toml_path: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, str],
) -> Found:
    """Return what the sources say, the last one winning; the files of secrets have been read."""
    found: Found = {}
    if toml_path is not None:
        _merge(found, _of_toml(toml_path, known))
    _merge(found, _of_environment(environ, known))
    _merge(found, {name: (value, flag_name(name)) for name, value in flags.items()})
    for name, by_file in SECRET_FILES.items():
        _read_secret_file(found, name, known[by_file])
    return found


def _of_toml(path: Path, known: Mapping[str, Field[Any]]) -> Found:
    written = _read_toml(path)
    for name in written:
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
    """Let a later origin win; a secret and a file that holds it are the same thing said twice."""
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
        found[name] = (_read_secret(path), str(path))
    except ConfigError as error:
        raise ConfigError(f"setting {declared.name} ({origin}): {error}") from None


def _read(path: Path, bytes_max: int) -> bytes:
    """Return what a file begins with. Of a pipe, what comes until its writers have closed it.

    To open a named pipe waits for somebody to write it, unless told not to; one that somebody has
    open, as a shell's <(..) does, is then waited for.
    """
    try:
        with open(path, "rb", opener=lambda name, how: os.open(name, how | os.O_NONBLOCK)) as file:
            os.set_blocking(file.fileno(), True)
            return file.read(bytes_max)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file says."""
    import tomllib  # noqa: PLC0415  2 ms of every start, for those who have no such file

    raw = _read(path, TOML_BYTES_MAX + 1)
    if len(raw) > TOML_BYTES_MAX:
        raise ConfigError(f"{path} is larger than {TOML_BYTES_MAX:,} bytes: no file of settings")
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except ValueError as error:  # syntax, encoding, a number of 5,000 digits
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _read_secret(path: Path) -> str:
    """Return the one line of a secret's file, without its end and the blanks around it."""
    raw = _read(path, SECRET_BYTES_MAX + 1)
    try:
        text = raw.decode("utf-8-sig").strip()
    except ValueError:
        raise ConfigError(f"{path} is not UTF-8 text") from None  # its text would show the secret
    if not text or len(raw) > SECRET_BYTES_MAX or len(text.splitlines()) > 1:
        raise ConfigError(f"{path} must hold one line, and nothing else")
    return text
