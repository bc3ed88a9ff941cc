"""Tests of ingest/cli, one part at a time, without a database."""
