"""Looking at a run: figures, and one page that shows it all. Knows nothing of how a run works."""
