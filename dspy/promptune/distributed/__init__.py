"""Where one machine is not enough: what travels to workers and what comes back."""
