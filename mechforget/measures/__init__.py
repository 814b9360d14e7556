"""The science, one measure a file. Each takes a pair (or sequence) and a task, and returns an
xarray.Dataset of per-prompt values."""

from mechforget.measures.attention_change import attention_change, attention_roles
from mechforget.measures.clean_corrupt import clean_corrupt
from mechforget.measures.continual import continual
from mechforget.measures.forgetting import forgetting
from mechforget.measures.grafting import grafting, grafting_modules
from mechforget.measures.inputs import Inputs
from mechforget.measures.landscape import curvature, flattening
from mechforget.measures.logit_attribution import logit_attribution
from mechforget.measures.loss_surface import loss_line, loss_plane, sharpness
from mechforget.measures.patching import patching
from mechforget.measures.routing import routing, routing_restored
from mechforget.measures.sets import top_sets

__all__ = [
    "Inputs",
    "attention_change",
    "attention_roles",
    "clean_corrupt",
    "continual",
    "curvature",
    "flattening",
    "forgetting",
    "grafting",
    "grafting_modules",
    "logit_attribution",
    "loss_line",
    "loss_plane",
    "patching",
    "routing",
    "routing_restored",
    "sharpness",
    "top_sets",
]
