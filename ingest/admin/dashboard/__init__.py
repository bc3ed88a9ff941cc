"""The dashboard: its addresses, its history and feed, and the page that the browser gets."""
