"""Finding settings by trying them: a learning rate, or any keys of a recipe."""
