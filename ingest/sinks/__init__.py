"""Sinks: they store batches in a database. Each one implements `Sink` of model/ports.py."""
