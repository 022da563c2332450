"""Steps 1 and 2: demo sets, instructions that are proposed, and those that the user brings."""
