"""Tests of ingest/formats/lines."""
