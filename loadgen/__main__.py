"""`python -m loadgen`."""

import sys

if __name__ == "__main__":
    try:
        from loadgen.cli import main  # takes a while, in which Ctrl-C may come

        code = main()
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
