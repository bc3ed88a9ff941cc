"""PostgreSQL as a sink: its connections, its table, its errors.

The only folder that knows asyncpg. Part of sinks; see there who may import it.
"""
