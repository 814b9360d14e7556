"""What a study would need and cost, and whether it would run: from a config alone."""
