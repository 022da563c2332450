"""What a run shows to people: figures, and one page with all of them."""
