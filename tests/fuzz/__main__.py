"""`./run fuzz`: random bodies of each format, compared with other decoders.

Prints a line for each format.

Exit codes: 0 no difference; 1 a difference or an exception, which is printed with its body.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Sequence

from tests.fuzz.campaign import FORMATS, campaign

BODIES_USUAL = 100_000


def show(cells: Sequence[str]) -> None:
    """Print a line of the table."""
    sys.stdout.write("".join(f"{each:>14}" for each in cells) + "\n")
    sys.stdout.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign of each format."""
    parser = argparse.ArgumentParser(prog="./run fuzz", description=__doc__)
    parser.add_argument(
        "--bodies", type=int, default=BODIES_USUAL, metavar="N", help="of each format"
    )
    parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same bodies")
    parser.add_argument("--only", choices=FORMATS, action="append", help="may be repeated")
    chosen = parser.parse_args(arguments)
    is_right = True
    show(["format", "bodies", "readings", "with faults", "refused", "s"])
    for name in chosen.only or FORMATS:
        began_s = time.monotonic()
        try:
            came = campaign(name, chosen.bodies, chosen.seed)
        except Exception:
            traceback.print_exc()
            is_right = False
            continue
        counts = [came.total(), *(came[each] for each in ("readings", "with faults", "refused"))]
        show([name, *(f"{each:,}" for each in counts), f"{time.monotonic() - began_s:.0f}"])
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
