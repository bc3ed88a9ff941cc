"""Tests of ingest/config, one part at a time, without a database."""
