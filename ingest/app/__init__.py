"""App: what makes the parts, connects them, starts and stops them in order."""
