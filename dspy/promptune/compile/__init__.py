"""DSPy programs: demo sets, proposed instructions, evaluation, and upstream's attributes."""
