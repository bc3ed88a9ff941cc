"""Sinks: they store batches in a database. Each one implements `Sink` of model/ports.py.

Imports model, system and config. admin, app and cli may import it.
"""
