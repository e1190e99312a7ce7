"""Rewards: a number for each completion. `build.py` makes them from the recipe, `base.py` says what one is."""
