"""Filters over what rows say."""
