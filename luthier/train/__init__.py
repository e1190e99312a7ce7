"""Training: order, one update, the loop, checkpoints. Start reading at `loop.py`, then `step.py`."""
