"""Other ways to the same numbers. They share no code with mechforget, and read plain sequences."""
