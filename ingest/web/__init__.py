"""An endpoint for an app of others: the data port's pages as handlers of aiohttp.web."""

from ingest.web.handlers import POSTS, context, routes

__all__ = ["POSTS", "context", "routes"]
