"""The path as a whole: what goes in over HTTP, what is answered, what is kept."""
