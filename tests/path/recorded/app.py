"""An app of aiohttp in place of `ingest serve`, with the constants that a test wants.

The app is that of the benchmarks, so what is measured is what is compared here.
"""

from __future__ import annotations

import sys

from tests.path.recorded.service import Running
from tests.support import constants


class RunningApp(Running):
    """The app. It has the pages of the data port, and no other pages of the admin port than two."""

    program = ("-m", "tests.path.recorded.app")


if __name__ == "__main__":
    with constants.wanted():
        from benchmarks.library import main

        main(sys.argv[1:])
