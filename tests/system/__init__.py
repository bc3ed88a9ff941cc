"""The real command line, started, stressed and killed."""
