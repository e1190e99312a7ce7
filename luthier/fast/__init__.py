"""The execution engine: attention over packed documents, head and loss at supervised rows, layer replacements."""
