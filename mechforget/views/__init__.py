"""A run as people see it: terminal, report and figures, all from one bundle of numbers."""
