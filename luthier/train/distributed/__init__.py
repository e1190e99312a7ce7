"""Several processes that train one model: how they find each other, share work, are watched, and end together."""
