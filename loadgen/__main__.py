"""`python -m loadgen`, and the script `loadgen`."""

import os
import sys


def _standard_files() -> None:
    """Open the file numbers 0, 1 and 2 if they are closed.

    Else a socket or a ledger would get such a number, and the printed texts. A closed standard
    output is an error (code 2), since no report could be printed.
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
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            if number == 2:
                sys.stderr = os.fdopen(2, "w")  # without one, print() takes the standard output


def main() -> int:
    """Run the command line; return the exit code."""
    _standard_files()
    try:
        from loadgen.cli.main import main as run  # noqa: PLC0415  takes a while, and Ctrl-C may come meanwhile

        return run()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
