"""Tests of ingest/app, one part at a time, without a database."""
