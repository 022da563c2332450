"""The loop of a run: ask, evaluate, tell; the thread pool; `search()` and its result."""
