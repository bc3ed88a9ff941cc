"""The command line: `commands` finds a command, and each has a file or a folder."""
