"""Recipes in a browser: check, edit, start."""
