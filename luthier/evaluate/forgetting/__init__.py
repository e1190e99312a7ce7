"""`builtin:forgetting`: four small tasks of general skill, made here, so that they need no file and no network.

rows.py    the questions    suite.py    as tasks, and what a tune cost over all of them
"""
