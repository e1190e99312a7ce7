def compute_stats(): pass
