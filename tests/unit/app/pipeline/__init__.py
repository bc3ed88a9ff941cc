"""Tests of ingest/app/pipeline."""
