"""Tests of the files in ingest/mqtt, one at a time, without a broker."""
