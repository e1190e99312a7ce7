"""Where rows come from, one file a mode. `base.py` says what a mode is, `build.py` makes the one of a spec."""
