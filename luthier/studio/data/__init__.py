"""Rows of a run or a file, prepared once in the background, read page by page from disk."""
