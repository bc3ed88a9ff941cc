"""Parts with a real PostgreSQL."""
