"""Thousands of patched variants of some prompts in one forward pass."""

MEMORY = 0.5  # GB for one forward's activations; on two cores 0.25 and 1 were slower, by 7 and 2 %
