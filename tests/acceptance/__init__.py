"""What a stranger would check, through the real command line: `python tests/acceptance/run.py`."""
