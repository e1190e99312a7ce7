"""One HTML page about a run: self-contained, readable without scripts, made from the run folder's files alone."""
