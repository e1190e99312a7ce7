"""From trained weights to a model to serve, with proof."""
