"""The science, one measure a file. Each takes a pair (or a sequence) and a task, and returns an
xarray.Dataset of per-prompt values.

The examples in their docstrings run on tiny models. `same` is a pair of one model and itself,
opened on 14 prompts; `mixture` is the same of a mixture of experts. In `planted` the second model
differs in one place: its W_O of head L1H2 is negated. `pair` is `planted` as two folders.
"""

from mechforget.measures.attention_change import attention_change, attention_roles
from mechforget.measures.attribution import attribution
from mechforget.measures.clean_corrupt import clean_corrupt
from mechforget.measures.continual import continual
from mechforget.measures.drift import drift
from mechforget.measures.forgetting import forgetting
from mechforget.measures.grafting import grafting, grafting_experts, grafting_modules
from mechforget.measures.inputs import Inputs
from mechforget.measures.interference import interference
from mechforget.measures.landscape import curvature, flattening
from mechforget.measures.ledger import ledger
from mechforget.measures.logit_attribution import logit_attribution
from mechforget.measures.loss_surface import loss_line, loss_plane, sharpness
from mechforget.measures.origins import origins
from mechforget.measures.patching import patching
from mechforget.measures.readout import readout
from mechforget.measures.routing import routing, routing_restored
from mechforget.measures.sets import top_sets
from mechforget.measures.similarity import against_forgetting, similarity
from mechforget.measures.weights import weights

__all__ = [
    "Inputs",
    "against_forgetting",
    "attention_change",
    "attention_roles",
    "attribution",
    "clean_corrupt",
    "continual",
    "curvature",
    "drift",
    "flattening",
    "forgetting",
    "grafting",
    "grafting_experts",
    "grafting_modules",
    "interference",
    "ledger",
    "logit_attribution",
    "loss_line",
    "loss_plane",
    "origins",
    "patching",
    "readout",
    "routing",
    "routing_restored",
    "sharpness",
    "similarity",
    "top_sets",
    "weights",
]
