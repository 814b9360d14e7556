"""Thousands of patched variants of some prompts in one forward pass."""
