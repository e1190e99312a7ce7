"""HTTP routes of the self-hosted fine-tuning API, as the official openai client calls them."""
