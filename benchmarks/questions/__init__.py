"""What is asked: mechforget's measure, its peers on the same prompts, and the least arithmetic."""
