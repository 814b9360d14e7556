"""What every result says of itself, over all public measures."""

import inspect
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import xarray as xr

from mechforget import measures
from mechforget.checkpoints import Pair, Sequence
from mechforget.measures import Inputs
from mechforget.measures.explained import UNITS, described, explained
from mechforget.measures.neutral_text import neutral
from tests.measures import toy
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

KNOWN = {
    *("nats", "bit", "share", "degree", "directions", "place", "weight", "experts", "tokens", "1"),
    *("nats per weight²", "nats² per weight²"),
}


@cache
def dense():
    _, _, inputs = toy.pair()
    return replace(inputs, corrupted=inputs.encoded, neutral=neutral(tiny_tokenizer()))


@cache
def mixture():
    """nnsight shows the routing of a mixture, and its experts."""
    pre, post = (toy.opened(tiny_model("mixtral", seed), "nnsight") for seed in (0, 1))
    return Inputs(pre, post, toy.encoded())


@cache
def scores():
    values = np.zeros((3, 2, 4)) + np.arange(4)
    found = {f"{m}_prompt": (("checkpoint", "task", "prompt"), values) for m in UNITS}
    coords = {
        "task": ["a", "b"],
        "trained": ("task", [1, 2]),
        "cluster": (("task", "prompt"), np.tile(np.arange(4), (2, 1))),
    }
    return xr.Dataset(found, coords)


@cache
def among_tasks():
    names = [*"abcdef"]
    apart = np.random.default_rng(0).random((6, 6))
    return xr.DataArray(apart, {"task": names, "other": names}, ("task", "other"))


@cache
def folders(tmp):
    return [save_tiny(tmp / f"{family}{seed}", family, seed) for family, seed in
            (("mixtral", 0), ("mixtral", 1), ("mixtral", 2))]  # fmt: skip


def restored():
    return dense_result("patching").effect.sel(metric="log_prob", direction="restore")


@cache
def dense_result(name):
    return getattr(measures, name)(dense())


MAKE = {
    "against_forgetting": lambda _: measures.against_forgetting(among_tasks(), among_tasks()),
    "attention_change": lambda _: measures.attention_change(dense()),
    "attention_roles": lambda _: measures.attention_roles(dense()),
    "attribution": lambda _: measures.attribution(dense()),
    "clean_corrupt": lambda _: measures.clean_corrupt(dense()),
    "continual": lambda _: measures.continual(scores()),
    "curvature": lambda _: measures.curvature(dense(), prompts=2, probes=2),
    "drift": lambda _: measures.drift(dense()),
    "flattening": lambda _: measures.flattening(measures.curvature(dense(), prompts=2, probes=8)),
    "forgetting": lambda _: dense_result("forgetting"),
    "grafting": lambda _: measures.grafting(dense()),
    "grafting_experts": lambda _: measures.grafting_experts(mixture()),
    "grafting_modules": lambda _: measures.grafting_modules(dense()),
    "interference": lambda _: measures.interference(dense(), new=toy.encoded(), minibatches=4),
    "ledger": lambda _: measures.ledger(dense()),
    "ledger of a mixture": lambda _: measures.ledger(mixture()),
    "logit_attribution": lambda _: measures.logit_attribution(dense()),
    "loss_line": lambda _: measures.loss_line(dense(), points=(0, 1)),
    "loss_plane": lambda _: measures.loss_plane(dense(), new=toy.encoded(), grid=(0, 1)),
    "origins": lambda _: measures.origins(dense(), layer=1, head=2),
    "patching": lambda _: dense_result("patching"),
    "patching of experts": lambda _: measures.patching(mixture(), site="expert_out"),
    "readout": lambda _: measures.readout(dense()),
    "routing": lambda _: measures.routing(mixture()),
    "routing_restored": lambda _: measures.routing_restored(mixture()),
    "sharpness": lambda _: measures.sharpness(dense(), directions=2),
    "similarity": lambda _: measures.similarity(dense(), other=toy.encoded()),
    "top_sets": lambda _: measures.top_sets(dense(), effect=restored(), sizes=(1, 2)),
    "weights": lambda tmp: measures.weights(Pair(*folders(tmp)[:2])),
    "weights of a sequence": lambda tmp: measures.weights(Sequence(folders(tmp))),
}


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


def test_every_public_measure_is_here():
    """Catches a new measure whose results nobody looked at."""
    assert {name.split(" of ")[0] for name in MAKE} == {*measures.__all__} - {"Inputs"}


@pytest.mark.parametrize("name", MAKE)
def test_every_number_has_a_unit_and_a_name(name, tmp):
    """Catches a variable without a unit, one whose metrics have several units and that names one,
    a measure without a source, and settings that are left out or not written as JSON."""
    found = MAKE[name](tmp)
    for variable, array in found.data_vars.items():
        if array.dtype.kind not in "biuf":
            continue
        assert array.attrs.get("units") in KNOWN, (variable, array.attrs)
        assert array.attrs.get("long_name"), variable
        if "metric" in array.dims:
            by_metric = json.loads(array.attrs["units_by_metric"])
            assert by_metric == {m: UNITS[m] for m in array.metric.values}
    measure = getattr(measures, name.split(" of ")[0])
    assert found.attrs["measure"] == measure.__name__ and found.attrs["source"]
    parameters = inspect.signature(inspect.unwrap(measure)).parameters.values()  # without `use`'s
    settings = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert json.loads(found.attrs["settings"]).keys() == settings


def test_settings_are_those_of_the_call(tmp):
    """Catches a default in the place of what was given, an iterator that is used up before the
    measure sees it, and a task or an array of which only its address is kept."""
    found = measures.patching(dense(), positions=iter((1, 2)), heads={(2, 1), (0, 3)})
    assert found.position.values.tolist() == [1, 2]
    assert json.loads(found.attrs["settings"]) == {
        "site": "head_out",
        "positions": [1, 2],
        "heads": [[0, 3], [2, 1]],
        "metric": None,
    }

    def largest(logits, reads):
        return reads.sum(logits.amax(-1))

    largest.units = "logits"
    found = measures.patching(dense(), heads={(0, 3)}, metric=largest)
    assert json.loads(found.attrs["settings"])["metric"] == "largest"
    want = {"log_prob": "nats", "logit_diff": "nats", "correct": "share", "largest": "logits"}
    assert json.loads(found.effect.attrs["units_by_metric"]) == want
    found = measures.interference(dense(), new=toy.encoded(), minibatches=np.int64(4))
    said = json.loads(found.attrs["settings"])
    assert said == {"new": "14 prompts", "at": [0.0], "minibatches": 4, "seed": 0}
    found = measures.top_sets(dense(), effect=restored(), sizes=(1,))
    assert json.loads(found.attrs["settings"])["effect"] == "array of 3 layer, 4 head, 14 prompt"
    pair = Pair(*(save_tiny(tmp / str(seed), seed=seed) for seed in (0, 1)))
    found = measures.interference(pair, toy.task(), new=toy.task(), minibatches=4)
    assert json.loads(found.attrs["settings"])["new"] == "toy" == found.attrs["task"]


def test_an_array_of_one_metric_has_one_unit():
    """Catches units by metric where there is no such axis, and a caller's dataset that is changed."""
    given = xr.Dataset({"x": ("prompt", [1.0]), "y": ("prompt", [1.0])})
    found = described(given, "none", x=("nats", "an x"), lacking=("bit", "nothing"))
    assert found.x.attrs == {"units": "nats", "long_name": "an x"} and found.y.attrs == {}
    assert given.x.attrs == {} and given.attrs == {} and found.attrs == {"source": "none"}

    def thing(*, a: int = 1) -> xr.Dataset:
        return given

    assert explained(thing)().attrs == {"measure": "thing", "settings": '{"a": 1}'}
