"""Thousands of patched variants of some prompts in one forward pass."""

MEMORY = 0.5  # GB for one forward's activations; on CPUs 0.25 and 2 were slower, by 5 and 35 %
