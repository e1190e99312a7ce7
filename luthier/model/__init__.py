"""Models and tokenizers: loading, methods, saving."""
