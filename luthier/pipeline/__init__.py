"""From rows to a proven model. Read `run.py` first: it tells the whole story."""
