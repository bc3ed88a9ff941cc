"""Tests of ingest/admin, one part at a time, without a database."""
