"""The dashboard: its addresses, its history and feed, and the page that the browser gets.

A part of admin: app and cli may import it.
"""
