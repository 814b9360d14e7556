"""Models that can be read and rewritten: one protocol, one file per backend."""
