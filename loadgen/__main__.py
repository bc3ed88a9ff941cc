"""`python -m loadgen`, and the script `loadgen`."""

import os
import sys


def _standard_files() -> None:
    """Have 0, 1 and 2 open: else a socket or a ledger would get such a number, and what is printed.

    Without a standard output there is nowhere to report to, which is an error (code 2).
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            if number == 1:
                print(
                    "loadgen: the standard output is closed: nothing to report to", file=sys.stderr
                )
                sys.exit(2)
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            if number == 2:
                sys.stderr = os.fdopen(2, "w")  # without one, print() takes the standard output


def main() -> int:
    """Run the command line; return the exit code."""
    _standard_files()
    try:
        from loadgen.cli.main import main as run  # noqa: PLC0415  takes a while; Ctrl-C may come

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
