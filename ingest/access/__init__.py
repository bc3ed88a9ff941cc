"""Access: the tokens of those who may post, their file, and the rule where there are none.

Knows no HTTP.
"""
