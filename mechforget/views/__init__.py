"""A run as a person sees it: terminal, report, figures; one bundle of the same numbers for all."""
