"""New instructions from failures: the attempts they are written from, and who writes them."""
