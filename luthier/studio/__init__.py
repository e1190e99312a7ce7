"""The web pages and what they read: run folders and the jobs of the API."""
