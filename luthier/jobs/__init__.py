"""The fine-tuning service behind the API: a durable queue, files, keys, and a worker for each GPU. No torch."""
