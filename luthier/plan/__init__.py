"""What a run will need, before it runs. Pure arithmetic; imports no torch."""
