"""Rows to batches: sources, conversations, templates and masks, tokens, packs."""
