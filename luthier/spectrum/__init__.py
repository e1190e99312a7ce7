"""Spectrum: which matrices of a model to train, from their singular values alone (arXiv:2406.06623)."""
