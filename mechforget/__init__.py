"""mechforget: which heads, layers and experts carry what fine-tuning made a model forget."""

__version__ = "0.1.0"
