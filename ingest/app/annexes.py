"""The annexes: parts of the package that `ingest serve` works without, and their commands.

This is the only file of the main house that knows them. Each is a folder of the package, which may
be missing. An annex may import the main house. What the main house asks of it is an Annex.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from ingest.model.errors import StartError

if TYPE_CHECKING:
    from ingest.config.settings import Settings
    from ingest.dead_letters.store import LetterStore
    from ingest.model.causes import Cause
    from ingest.model.ledger import Metrics
    from ingest.sinks.postgres.connection import DatabaseUrl
    from ingest.sinks.postgres.housekeeping.known_partitions import KnownPartitions
    from ingest.sinks.postgres.housekeeping.runs import Job
    from ingest.sinks.postgres.lookup import RolledCurve
    from ingest.sinks.postgres.schema import TargetTable

# Gets the settings. Returns what `ingest doctor` finds: of each finding name, state and words.
MakeChecks = Callable[["Settings"], Awaitable[Sequence[tuple[str, str, str]]]]
# Gets the settings, the store that the user asked for, and the letters in files.
FindLetters = Callable[
    ["Settings", "str | None", "LetterStore"], AbstractAsyncContextManager["LetterStore"]
]
FOLDERS = ("years", "roles", "mqtt")
NOT_OF_DECLARED = (
    "keep_hot would drop old rows of the declared tables (tables_file) although {} is set, which "
    "has only what is in the table of readings: they would be nowhere. Remove one of these three "
    "settings"
)
OF_YEARS = ("keep_hot", "archive_dir", "rollups")  # settings that nothing else follows


class Annex(NamedTuple):
    """What an annex adds to the lists of the main house: the value ANNEX of its `annex.py`.

    That file must load quickly, and no library of the annex. `jobs` returns jobs of the
    housekeeping; their long steps ask the function whether to stop. `late_partitions` returns what
    makes partitions for late readings of a table. `rolled_curve` returns what answers the page
    from rollups.
    """

    causes: Mapping[str, Cause] = MappingProxyType({})
    metrics: Metrics[Any] = ()
    checks: MakeChecks | None = None
    letters: FindLetters | None = None
    jobs: Callable[[Settings, Callable[[], bool]], list[Job]] | None = None
    late_partitions: Callable[[Settings, DatabaseUrl, TargetTable], KnownPartitions] | None = None
    rolled_curve: Callable[[], RolledCurve] | None = None


class CommandModule(NamedTuple):
    """Where a command is: the module has it as COMMAND, or several by their names as COMMANDS.

    `extra` is what to install for a command of an annex, as in iot-ingest[EXTRA].
    """

    purpose: str
    module: str
    extra: str = ""


COMMANDS: dict[str, CommandModule] = {
    "up": CommandModule(
        "run the same as several processes, with a broker between them",
        "ingest.roles.commands.services",
        "roles",
    ),
    "gateway": CommandModule(
        "take posts, and publish them to the stream of a broker",
        "ingest.roles.commands.services",
        "roles",
    ),
    "writer": CommandModule(
        "take messages of the stream of a broker, and write them to PostgreSQL",
        "ingest.roles.commands.services",
        "roles",
    ),
    "stream": CommandModule(
        "make the stream of the broker, check it, or show its state",
        "ingest.roles.commands.stream",
        "roles",
    ),
    "forward": CommandModule(
        "post the readings of the stream to a webhook", "ingest.roles.commands.forward", "roles"
    ),
    "mqtt": CommandModule(
        "post the messages of an MQTT broker to the service", "ingest.mqtt.command", "mqtt"
    ),
    "archive": CommandModule(
        "list, verify, restore and release old readings that are in Parquet files",
        "ingest.years.archive.command",
        "archive",
    ),
}


def module_of(command: str) -> ModuleType:
    """Return the module of a command of an annex. Raises StartError if the annex is not there."""
    wanted = COMMANDS[command]
    module = _module(wanted.module)
    if module is None:
        raise StartError(needs(f"ingest {command}", wanted.extra))
    return module


def check_settings(settings: Settings) -> None:
    """Raise StartError if a setting asks for an annex that is not there, or for what none does."""
    for name in ("archive_dir", "rollups"):
        if settings.tables_file and settings.keep_hot and getattr(settings, name):
            raise StartError(NOT_OF_DECLARED.format(name))
    if why := lacking(settings):
        raise StartError(why)


def lacking(settings: Settings) -> str:
    """Return what to install for a setting that asks for an annex, or nothing."""
    asked = [name for name in OF_YEARS if getattr(settings, name)]
    if any(each.jobs for each in annexes()):
        # Without its library, partitions would leave the table, and their readings be in no file.
        archives = settings.archive_dir and settings.housekeeping
        asked = ["archive_dir"] if archives and find_spec("pyarrow") is None else []
    return needs(f"the setting {asked[0]}", "archive") if asked else ""


def needs(what: str, extra: str) -> str:
    """Return the sentence that says what to install for something."""
    return f"{what} needs the extra `{extra}`: install iot-ingest[{extra}]"


@cache
def annexes() -> tuple[Annex, ...]:
    """Return the annexes that are there. A file that an annex itself lacks is an error."""
    modules = [_module(f"ingest.{folder}.annex") for folder in FOLDERS]
    return tuple(each.ANNEX for each in modules if each is not None)


def _module(name: str) -> ModuleType | None:
    """Return a module of an annex; None if it, or the folder that it is in, is not there."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise
    return None
