"""Runs: which there are, what one holds, how it goes, and what can be asked of it."""
