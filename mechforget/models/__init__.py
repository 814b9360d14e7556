"""Models that can be read and rewritten: one protocol, one file per backend.

open(checkpoint) -> Model, proven against plain Hugging Face on the way.
"""

from mechforget.models.opening import BACKENDS, DEFAULT, Loading, open

__all__ = ["BACKENDS", "DEFAULT", "Loading", "open"]
