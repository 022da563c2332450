"""What a run found: its record, and what is said of it in words and numbers."""
