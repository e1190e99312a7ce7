"""Rows that are left out or mended for what they say. Start reading at `run.py`."""
