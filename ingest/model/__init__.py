"""Ground: what a reading is and what the parts say to each other. Knows no library.

Imports nothing of ours; everybody may import it.
"""
