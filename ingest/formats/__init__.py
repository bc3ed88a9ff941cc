"""Formats: from the bytes of a post to a block of its valid readings, and errors for the others."""
