"""The composition roots: what makes the parts, connects them, starts and stops them in order."""
