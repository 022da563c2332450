"""The decision: which prompt gets the next examples, how many, and who wins."""
