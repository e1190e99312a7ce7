"""The first five minutes: an embedded model and a synthetic task, from untouched to tuned, proven and merged."""
