"""`./run clients`: unmodified client libraries write, while database and service are killed."""
