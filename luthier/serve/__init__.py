"""Serve models over HTTP: an engine that batches requests as they come, and OpenAI-compatible routes above it."""
