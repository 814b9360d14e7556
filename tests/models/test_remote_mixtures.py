"""Served mixtures of experts against the same models here: a real server, whose transformers is not
the client's."""

import ast
from dataclasses import replace
from pathlib import Path

import nnsight
import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

import mechforget
from mechforget import checkpoints, models
from mechforget.measures import Inputs
from mechforget.models import beside, modules, opening, remote
from mechforget.study.available import lacking
from mechforget.study.catalogue import defaults, names
from mechforget.study.run import run
from mechforget.study.scene import Scene
from mechforget.study.settings import SITES, study
from tests.measures import toy
from tests.remote.server import MIXTURES, mixtures  # noqa: F401 (a fixture)
from tests.tiny import tiny_model

EXPERTS = ("router", "expert_out")
REFUSED = (
    "ledger",
    "weights",
    "landscape",
    "clean_corrupt",
)  # by a server, or for want of subjects
WANTED = {  # what a run asks for: all that can be had, the default, and what sees experts
    "qwen3_moe": (defaults(), ("head_out", *EXPERTS)),
    "mixtral": (("patching", "attribution", "routing", "interference", "grafting"), EXPERTS),
    "llama4_text": (tuple(set(names()) - set(REFUSED)), (*SITES, *EXPERTS)),
}
AWAY = {"ledger", "origins", "weights", "grafting/modules", "grafting/experts"}
IDS = torch.arange(3, 25).view(2, 11)


@pytest.fixture
def tasks(tmp_path):
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    countries = ("France is, Paris", "Italy is, Rome", "Spain is, Madrid", "Japan is, Tokyo")
    old.write_text("\n".join(["prompt,answer", *(f"The capital of {c}" for c in countries)]))
    verbs = ("go is, went", "see is, saw", "eat is, ate", "take is, took")
    new.write_text("\n".join(["prompt,answer", *(f"The past tense of {v}" for v in verbs)]))
    return {"task": str(old), "new_task": str(new)}


@pytest.mark.parametrize("family", MIXTURES)
def test_every_measure_on_the_server_is_the_one_here(mixtures, tasks, family, tmp_path):  # noqa: F811
    """Catches a mixture that a server doesn't show, experts that are another one's there, a measure
    whose code doesn't travel or that fails halfway. What is left out is known before the first."""
    url, pairs = mixtures
    pre, post = map(str, pairs[family])
    measures, sites = WANTED[family]
    given = tasks | {"pre": pre, "post": post, "measures": measures, "sites": sites}
    there = run(study(**given, backend="remote", server=url), tmp_path / "there")
    here = run(study(**given, backend="nnsight"), tmp_path / "here")
    made, wanted = (set(store.manifest["seconds"]) for store in (there, here))
    assert wanted - made == wanted & AWAY
    assert made <= wanted and {"routing", "interference", "patching/expert_out"} <= made
    for name in sorted(made):
        ours, theirs = here.get(name), there.get(name)
        assert set(ours) == set(theirs)
        for variable in ours:
            want, got = ours[variable], theirs[variable]
            if name == "interference" and "at" in want.dims:  # halfway both weights are needed
                want = want.sel(at=got["at"])
            if want.dtype.kind not in "fiub":
                continue
            size = np.nanmax(abs(want.values), initial=1)
            np.testing.assert_allclose(got, want, atol=2e-5 * size, err_msg=f"{name} {variable}")


@pytest.mark.parametrize("family", MIXTURES)
def test_a_served_mixture_is_read_as_it_is_here(mixtures, family):  # noqa: F811
    """Catches a site, a layer or an expert that one side sees and the other doesn't, and a proof
    that doesn't say with what it was made."""
    url, pairs = mixtures
    checkpoint = checkpoints.open(pairs[family][0])
    here = models.open(checkpoint, models.Loading("nnsight"))
    there = models.open(checkpoint, models.Loading("remote", server=url))
    assert there.spec == replace(here.spec, resident=False) and there.spec.experts == 4
    said = {proof.name: proof for proof in there.proofs}
    assert said["the model was opened and proved on its server"].detail.startswith("transformers ")
    experts = said["experts are called with tokens, chosen experts and their weights"]
    assert experts.passed and experts.detail.startswith("4 experts, layers ")


@pytest.mark.parametrize("fails", [False, True])
def test_a_served_llama_4_is_left_as_it_was(fails):
    """Catches a rewritten mixture that other users of the server would find, also after a question
    that failed; and one that isn't rewritten where nnsight has wrapped it already."""
    plain = tiny_model("llama4_text")
    experts, ran = plain.model.layers[1].feed_forward.experts, []
    want, kind = plain(IDS).logits, type(experts)
    add_hook_to_module(experts, ModelHook())  # as where a server spreads it over its GPUs
    envoy = nnsight.NNsight(plain)
    experts.register_forward_pre_hook(lambda m, args: ran.append((len(args), len(args[0]))))
    try:
        with beside.left_as_it_was(envoy):
            model = beside.model(envoy, None)
            assert model.spec.moe == (1,) and "expert_out" in model.spec.sites
            ran.clear()
            torch.testing.assert_close(model.run(IDS, {}), want, atol=1e-5, rtol=0)
            assert ran == [(3, 22)]
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    torch.testing.assert_close(plain(IDS).logits, want)
    assert ran[-1] == (1, 88) and type(experts) is kind
    remove_hook_from_module(experts)  # puts the forward back that accelerate has kept
    torch.testing.assert_close(plain(IDS).logits, want)


def test_experts_that_are_called_in_another_way_are_said(monkeypatch):
    """Catches a mixture that passes for a dense model because a version of transformers calls its
    experts in another way."""
    monkeypatch.setattr(modules, "_routed", lambda block, name: False)
    model = opening.proven(tiny_model("mixtral"), "nnsight")
    said = {proof.name: proof for proof in model.proofs}
    proof = said["experts are called with tokens, chosen experts and their weights"]
    assert not proof.passed and proof.detail == "4 experts, no layer"
    inputs = Inputs(model, model, toy.encoded())
    for backend in ("nnsight", "remote"):
        scene = Scene(study(pre="a", post="b", task="c", backend=backend), inputs)
        assert "are called in a way that isn't known" in scene.unsplit()
        assert lacking(scene)["routing"].endswith(f"no mixture of experts: {scene.unsplit()}")
    dense = opening.proven(tiny_model("llama"), "nnsight")
    assert not any("experts" in proof.name for proof in dense.proofs)


@pytest.mark.parametrize("module", ["mechforget.measures.routing", "mechforget", "tests.tiny"])
def test_a_function_that_does_not_travel_is_refused_at_import(module):
    """Catches a measure that ends on a server with a module that isn't there."""

    def asks(model):
        return model

    asks.__module__ = module
    with pytest.raises(TypeError, match=r"can't run beside a served model.* mechforget/sweeps/"):
        beside.beside_the_model(asks)
    asks.__module__ = "mechforget.sweeps.reads"
    assert beside.beside_the_model(asks)(3) == 3


def test_what_travels_imports_only_what_travels():
    """Catches an import, also inside a function, of a room that no server has."""
    _, sources, _ = remote._shipment()
    assert {"mechforget.sweeps.reads", "mechforget.errors"} <= set(sources)
    for name, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            wanted = []
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{name} imports relatively"
                wanted = [node.module]
            elif isinstance(node, ast.Import):
                wanted = [one.name for one in node.names]
            for module in wanted:
                package, _, rest = module.partition(".")
                room = rest.partition(".")[0]
                known = not rest or room in beside.ROOMS or room in beside.ALONE
                assert package != "mechforget" or known, f"{name} imports {module}"
    assert (Path(mechforget.__file__).parent / "measures").is_dir()  # what would be missing
