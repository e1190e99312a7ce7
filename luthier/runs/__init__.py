"""Run folders: what a run leaves, and when it may be reused."""
