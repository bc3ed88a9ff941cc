"""Tests of ingest/receiver/pages."""
