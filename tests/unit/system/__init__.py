"""Tests of ingest/system, one part at a time, without a database."""
