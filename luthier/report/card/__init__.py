"""The model card: README.md of a model folder, made from the run folder's files alone."""
