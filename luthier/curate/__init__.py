"""Rows looked at as a set, after reading and before tokenising: which of them say the same."""
