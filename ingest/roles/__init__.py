"""Roles, an annex: several processes with a broker between them, and posts to a webhook."""
