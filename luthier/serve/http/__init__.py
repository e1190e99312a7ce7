"""The routes: OpenAI's shapes of requests, answers and errors, over the models of a `Host`."""
