"""Sinks: where batches are written to. Each keeps the contract `Sink` of model/ports.

Imports the ground. admin, app and cli may import it.
"""
