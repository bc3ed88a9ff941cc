"""Model: what a reading is, and the types that the folders pass to each other. Knows no library."""
