"""Tests of ingest/formats/mapped."""
