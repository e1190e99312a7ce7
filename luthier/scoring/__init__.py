"""Score one answer: find it in a text, compare it with a reference. Pure; evaluation and rewards share it."""
