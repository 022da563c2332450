"""What a run may take: calls in flight, rate limits, budgets, usage, and an estimate before it begins."""
