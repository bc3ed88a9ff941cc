"""PostgreSQL as a sink: its connections, its table, its errors."""
