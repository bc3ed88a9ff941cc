"""One role as a process of its own: a gateway, a writer, a forwarder, with their admin ports."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.system.service import Service

ALL = re.compile(r"(http://[^/\s]+)")


class RoleProcess(Service):
    """`ingest ROLE`. Its ports are the same after each start."""

    def __init__(
        self,
        role: str,
        state_dir: Path,
        *,
        env: Mapping[str, str],
        program: Sequence[str],
        admin_listen: str,
        **settings: object,
    ) -> None:
        super().__init__(state_dir, env=env, program=program, admin_listen=admin_listen, **settings)
        self.command = role
        self.admin_at = f"http://{admin_listen}"
        # A writer prints the address of its page, a forwarder that of its probes.
        self.admin_url_in = re.compile(r"metrics: (http://\S+)") if role != "writer" else ALL
        if role != "gateway":
            self.data_url_in = self.admin_url_in
            del self._settings["listen"]
