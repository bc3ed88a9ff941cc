"""Measurements: `./run bench`, and pytest-benchmark for the parts."""
