"""`ingest forward`: posts the readings of the stream to a webhook."""
