"""The command line: `main` finds the command, and each has a file or a folder."""
