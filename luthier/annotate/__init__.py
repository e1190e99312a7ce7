"""Rows judged by people: accept, reject, edit, rank; an append-only log; what the log says, as rows for training.

files -> items.py -> session.py (terminal.py | server.py) -> log.py -> labels.py -> status.py | export.py
"""
