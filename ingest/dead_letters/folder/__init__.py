"""Dead letters in files of a folder: appended, read, marked, replayed."""
