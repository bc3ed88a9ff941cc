"""Clients of the service: post a CSV, run a simulated fleet.

They know the service from outside only (HTTP, metrics, its command line), so that what they find
out is what a device would: nothing of `ingest` is imported.
"""
