"""Tests of the files in ingest/mqtt."""
