"""Mistakes that the tests must find, as patches, and a runner for them."""
