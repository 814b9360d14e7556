"""A run's stored results against what the bundle says of them, by other code; then on the page."""

import shutil

import numpy as np
import pytest

from mechforget import checkpoints, measures
from mechforget.measures import Inputs
from mechforget.measures.interference import summary
from mechforget.models import Loading
from mechforget.study.prompts import prompts
from mechforget.study.settings import study
from mechforget.study.store import Store
from mechforget.views.bundle import bundle
from tests import runs
from tests.tiny import tiny_model


def fill(store: Store) -> Store:
    """Every mechanism's result of the run's own pair, small, where it isn't there yet."""
    given = study(**store.manifest["settings"])
    pair = checkpoints.Pair(given.pre, given.post)
    on = lambda name: Inputs.of(pair, prompts(given, name), loading=Loading())  # noqa: E731
    inputs, new = on(given.task), on(given.new_task)
    twin = Inputs(inputs.post, inputs.pre, inputs.encoded)
    makers = {
        "drift": lambda: measures.drift(inputs),
        "control_twin/drift": lambda: measures.drift(twin),
        "interference": lambda: measures.interference(inputs, new=new.encoded, minibatches=4),
        "landscape/line": lambda: measures.loss_line(inputs, points=(0, 0.5, 1)),
        "landscape/line_new": lambda: measures.loss_line(new, points=(0, 0.5, 1)),
        "landscape/curvature": lambda: measures.curvature(inputs, prompts=4, probes=8, products=9),
        "landscape/sharpness": lambda: measures.sharpness(inputs, directions=3),
        "ledger": lambda: measures.ledger(inputs),
        "readout": lambda: measures.readout(inputs),
        "weights": lambda: measures.weights(pair),
    }
    for name, make in makers.items():
        if not store.has(name):
            store.put(name, make())
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mechanisms") / "run"
    shutil.copytree(runs.compared()[0], folder)
    return fill(Store(folder))
