"""When posts are taken after a start: whether the table must have been checked before.

With the journal and a configured database, posts are taken at once if this state folder has seen a
good check of this database. If it has not, they are taken as soon as it is clear that the database
is away. A refusal, such as a wrong password, says that a setting is wrong: then posts have to wait.
Does not: check anything itself.
"""

from __future__ import annotations

from ingest.app.health import Health
from ingest.sinks.postgres.connection import identity
from ingest.sinks.postgres.target import READINGS, TargetTable
from ingest.system.logs import Occasionally, get_logger
from ingest.system.state_folder import StateFolder

WARNING_S = 60.0


class FirstContact:
    """Tells `health` when posts are taken. `may_take`: also before the table has been checked."""

    def __init__(
        self, health: Health, folder: StateFolder, *, may_take: bool, target: TargetTable = READINGS
    ) -> None:
        self._health = health
        self._folder = folder
        self._may_take = may_take
        self._target = target
        self._known = False
        self._remembered = ""
        self._occasionally = Occasionally(WARNING_S)
        self._log = get_logger("service")

    def _name(self, url: str) -> str:
        """Return the database and the table, if that is not the default, for the state folder."""
        target, database = self._target, identity(url)
        ours = f" {target.name} ({target.column_list})"
        return database if target == READINGS else database + ours

    def begin(self, url: str) -> None:
        """The first connection to this database is about to be made."""
        self._remembered = self._folder.remembered_database()
        self._known = self._may_take and self._remembered == self._name(url)
        if self._known:
            self._health.taking_unchecked()

    def away(self, why: str) -> None:
        """No server can be used now, and the table has not been checked yet."""
        if not self._may_take or self._known:
            return
        self._health.taking_unchecked()
        if self._occasionally.due("never seen") is not None:
            self._log.warning(
                "database_never_seen",
                why=f"{why}; this state folder has never seen this database, so check "
                "database_url; posts are taken into the journal meanwhile",
            )

    def checked(self, url: str) -> None:
        """The table of this database is right. Blocks for two fsyncs if that is new."""
        name = self._name(url)
        if not self._may_take or name == self._remembered:
            return
        try:
            self._folder.remember_database(name)
        except OSError as error:
            self._log.warning("database_not_remembered", why=str(error))
        self._remembered = name  # a disk that fails is not asked at each connect
