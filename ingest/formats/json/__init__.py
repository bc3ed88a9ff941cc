"""JSON and NDJSON with items of our own: body, fast and careful path."""
