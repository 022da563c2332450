"""One run: ask, evaluate concurrently, tell."""
