"""How many connections a port may have: the setting, or what the limit of open files allows."""

from __future__ import annotations

import resource

from ingest.system.limits import SPARE_FILES
from ingest.system.logs import get_logger

NEARLY_ALL = 0.8


class OpenFiles:
    """`most` connections are possible, and at most the `wanted` ones."""

    def __init__(self, wanted: int) -> None:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.most = min(wanted, max(files - SPARE_FILES, 16))
        self._untold = (files, wanted) if self.most < wanted else None
        self._log = get_logger("connections")

    def tell_if_near(self, count: int) -> None:
        """Log once that open files limit the connections, when nearly all of these are open."""
        if self._untold is None or count < NEARLY_ALL * self.most:
            return
        (files, wanted), self._untold = self._untold, None
        self._log.warning(
            "fewer_connections",
            most=self.most,
            wanted=wanted,
            open_files_max=files,
            open_files_needed=wanted + SPARE_FILES,
        )
