"""Tokens in, tokens out: batched greedy generation for scores, streamed generation for chat."""
