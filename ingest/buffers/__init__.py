"""Buffers: they keep accepted blocks until these are stored.

Each one implements `Buffer` of model/ports.py. Imports model, system and config. app and cli may
import it.
"""
