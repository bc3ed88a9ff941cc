"""Model: what a reading is, and the types that the folders pass to each other. Knows no library.

Imports nothing of ours. Every folder may import it.
"""
