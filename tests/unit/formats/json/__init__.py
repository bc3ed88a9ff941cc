"""Tests of ingest/formats/json."""
