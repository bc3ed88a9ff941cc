"""Helpers of the tests: servers, fakes, makers of data."""
