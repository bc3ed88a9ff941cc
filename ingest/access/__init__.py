"""Access: the tokens of those who may post, their file, and the rule where there are none.

Imported by `receiver`, `dead_letters`, `app` and `cli`. Knows no HTTP.
"""
