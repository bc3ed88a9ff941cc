"""Tests of the whole path, from a post to a row."""
