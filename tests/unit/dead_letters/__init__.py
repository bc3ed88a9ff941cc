"""Tests of ingest/dead_letters, one part at a time, without a database."""
