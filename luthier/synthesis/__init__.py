"""Rows made by a model: from seeds, from documents, by evolution, by rejection sampling. Start reading at `run.py`."""
