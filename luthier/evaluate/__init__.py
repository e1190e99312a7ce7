"""Scores with intervals, and paired tests between two models on the same rows."""
