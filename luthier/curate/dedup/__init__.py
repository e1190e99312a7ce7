"""Duplicates: exact, fuzzy (MinHash), semantic (embeddings). Read `run.py:deduplicate` first."""
