"""Continuous batching on transformers models: requests join and leave between two steps of decoding.

    submit --> waiting --admit--> prefilling --last chunk--> decoding --stop, length, cancel--> gone
                (scheduler)      (slots.py: one row of the cache each)

One thread owns model and cache (`loop.Engine`). A pass of its loop reads at most `prefill_tokens`
tokens of waiting prompts and then makes one token for every row that is decoding, so a long prompt
does not stall the answers under way. `sampling` chooses tokens, `text` turns them into pieces of
text, `adapters` lets each row use its own adapter.
"""
