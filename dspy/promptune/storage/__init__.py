"""What is written down, how a run resumes, and how several processes share one study."""
