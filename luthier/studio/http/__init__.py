"""HTTP: session, headers, pages, routes."""
