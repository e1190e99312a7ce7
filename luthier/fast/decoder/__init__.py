"""Decoder layers of known families as one differentiable function each: forward and backward written out."""
