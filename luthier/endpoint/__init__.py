"""Ask any OpenAI-compatible server: retried, concurrent, cached on disk, counted. Start reading at `client.py`."""
