"""Documents as passages: `read.py` makes text of a file, `chunk.py` cuts it, `quote.py` finds a quotation in it."""
