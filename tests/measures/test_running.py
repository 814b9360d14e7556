"""How models run, said once or for one call, and what measures refuse before anything is loaded."""

import doctest
import inspect
import logging

import numpy as np
import pytest
import torch

from mechforget import measures, models
from mechforget.checkpoints import Pair, Sequence
from mechforget.errors import MeasureError, ModelError
from mechforget.measures import running
from mechforget.measures.running import Running, use
from tests.measures import toy
from tests.tiny import save_tiny


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """What a test says is forgotten after it."""
    monkeypatch.setattr(running, "_said", {})
    monkeypatch.setattr(running, "_noted", set())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("running")
    return [save_tiny(folder / str(seed), "llama", seed) for seed in (0, 1, 2)]


@pytest.fixture
def unopened(monkeypatch):
    """No model can be opened: what is refused is refused before."""

    def fail(*args, **kwargs):
        raise AssertionError("a model was opened")

    monkeypatch.setattr(models, "open", fail)


def test_use_says_how_models_run_and_a_call_may_say_otherwise(folders):
    """Catches settings that don't reach the models, a call that changes what was said for all, and
    a result that doesn't say how it was made."""
    pair, task = Pair(*folders[:2]), toy.task()
    assert use() == Running()
    plain = measures.forgetting(pair, task)
    assert [plain.attrs[k] for k in ("backend", "device", "dtype")] == [
        *("transformer_lens", "cpu", "float32")
    ]
    assert use(backend="nnsight", dtype="bfloat16", memory=1) == use()
    coarse = measures.forgetting(pair, task)
    assert [coarse.attrs[k] for k in ("backend", "device", "dtype")] == [
        *("nnsight", "cpu", "bfloat16")
    ]
    gap = abs(coarse.score - plain.score).sel(metric="log_prob").max()
    assert 1e-4 < gap < 1  # it was computed in bfloat16
    exact = measures.forgetting(pair, task, dtype="float64", backend="transformer_lens")
    assert (exact.attrs["dtype"], exact.attrs["backend"]) == ("float64", "transformer_lens")
    gap = abs(exact.score - plain.score).sel(metric="log_prob").max()
    assert 0 < gap < 1e-3
    assert use() == Running("nnsight", "cpu", "bfloat16", 1)  # a call changed nothing


def test_a_sequence_and_similarity_and_a_setting_that_is_a_task_run_the_same_way(folders):
    """Catches a way into a measure that forgets what was said."""
    task = toy.task()
    found = measures.forgetting(Sequence(folders), task, dtype="float64")
    assert found.attrs["dtype"] == "float64" and found.sizes["checkpoint"] == 2
    use(dtype="float64")
    pair = Pair(*folders[:2])
    assert measures.similarity(pair, task, other=task).attrs["dtype"] == "float64"
    found = measures.interference(pair, task, new=task, minibatches=2, dtype="float32")
    assert found.attrs["dtype"] == "float32"
    assert "dtype" not in measures.weights(pair).attrs  # no model runs


def test_the_example_is_true():
    """Catches an example that was true once."""
    found = doctest.testmod(running)
    assert (found.failed, found.attempted) == (0, 2)


def test_memory_reaches_the_sweep(folders, monkeypatch):
    """Catches a budget that is accepted and ignored, and inputs opened by hand that forget it."""
    seen = []
    of = measures.Inputs.over_prompts
    monkeypatch.setattr(
        measures.Inputs,
        "over_prompts",
        lambda s, *a, **k: (seen.append(s.memory), of(s, *a, **k))[1],
    )
    use(memory=3)
    measures.forgetting(Pair(*folders[:2]), toy.task())
    measures.forgetting(Pair(*folders[:2]), toy.task(), memory=0.5)
    inputs = measures.Inputs.of(Pair(*folders[:2]), toy.task())
    measures.forgetting(inputs)
    assert seen == [3, 0.5, 3]
    use(dtype="float64")
    assert next(
        measures.Inputs.of(Pair(*folders[:2]), toy.task()).pre.module.parameters()
    ).dtype == (torch.float64)


def test_torchs_own_names_may_be_given():
    """Catches 'torch.bfloat16', which a notebook holds as an object, refused or kept as such."""
    assert use(dtype=torch.bfloat16, device=torch.device("cpu")) == Running(dtype="bfloat16")


def test_another_backend_forgets_what_belonged_to_the_last(monkeypatch):
    """Catches a server that a later backend can't have, and an endless need to take things back."""
    use(backend="remote", server="http://here:5001", half_donors=True, dtype="bfloat16")
    assert use(dtype="float32").server == "http://here:5001"
    assert use(backend="remote") == Running("remote", dtype="float32")  # hosted NDIF
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert use(backend="nnsight", device="cuda:1").device == "cuda:1"
    assert use(backend="transformer_lens").device == "cuda:1"
    assert use(backend="remote", server="http://here:5001").device == "cpu"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"device": "gpu"}, "device 'gpu' is unknown: want cpu, cuda, cuda:N, auto or disk"),
        ({"device": "mps"}, "device 'mps' is not supported: .* use device 'cpu'"),
        ({"device": "disk"}, "device 'disk' spreads a model, .* want backend nnsight"),
        ({"dtype": "int8"}, "dtype 'int8': want float32, float64, bfloat16 or float16"),
        ({"backend": "jax"}, "backend 'jax' is unknown; backends: transformer_lens, nnsight, rem"),
        ({"server": "http://x"}, "server 'http://x' needs backend remote"),
        ({"half_donors": True}, "half_donors needs backend remote"),
        ({"backend": "remote", "server": "x:1"}, "server 'x:1': want http://HOST:PORT"),
        ({"backend": "remote", "device": "cuda"}, "device 'cuda' is for models that run here"),
        ({"memory": 0}, "memory 0: want GB, a number above 0"),
        ({"memory": "2"}, "memory '2': want GB, a number above 0"),
    ],
)
def test_what_no_model_can_run_with_is_refused_before_one_is_opened(said, words, folders, unopened):
    """Catches a traceback from torch after a long load, and a refused value that stays in force."""
    with pytest.raises(ModelError, match=words) as refused:
        use(**said)
    assert "\n" not in str(refused.value)
    assert use() == Running()
    with pytest.raises(ModelError, match=words):
        measures.patching(Pair(*folders[:2]), toy.task(), **said)


def test_cuda_is_refused_where_there_is_none_or_too_few(monkeypatch):
    """Catches torch's own 'Torch not compiled with CUDA enabled', or an invalid ordinal."""
    for n, device, words in ((0, "cuda", "no CUDA devices"), (1, "cuda:1", "1 CUDA device that")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=n: n)
        with pytest.raises(ModelError, match=f"device '{device}' is not usable .* has {words}"):
            use(device=device)


def test_an_accelerator_that_is_not_used_is_named_once(folders, monkeypatch, caplog):
    """Catches a notebook that runs on the CPU beside a GPU without a word, and one that nags."""
    pair, task = Pair(*folders[:2]), toy.task()
    measures.forgetting(pair, task)
    assert not caplog.messages  # there is none here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with caplog.at_level(logging.WARNING, "mechforget"):
        measures.forgetting(pair, task, device="cpu")
        assert not caplog.messages  # chosen
        for _ in range(2):
            measures.forgetting(pair, task)
        assert len(caplog.messages) == 1
        assert "this machine has cuda: mf.use(device='cuda')" in caplog.messages[0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda pair, task: measures.patching(pair, task, sites="z"),
            "patching has no setting 'sites': it has site, positions, heads.*; and how models run: "
            "backend, device, dtype, memory, server, half_donors",
        ),
        (
            lambda pair, task: measures.curvature(pair, task, memory=1, batch=2),
            "curvature has no setting 'batch': .* backend, device, dtype, server, half_donors",
        ),
        (
            lambda pair, task: measures.weights(pair, device="cuda"),
            "weights has no setting 'device': it has spectra, k$",
        ),
        (
            lambda pair, task: measures.similarity(pair, task, other=task, seed=1),
            "similarity has no setting 'seed': it has other, pairs; and how models run",
        ),
        (lambda pair, task: measures.interference(pair, task), "interference: new is missing"),
        (
            lambda pair, task: measures.interference(pair, task, new="builtin:capital"),
            "interference: new is 'builtin:capital', a str: want a task, mf.tasks.load",
        ),
        (
            lambda pair, task: measures.patching(pair, "builtin:capital"),
            "patching: task is 'builtin:capital', a str: want a task, mf.tasks.load",
        ),
        (
            lambda pair, task: measures.patching("pre", task),
            r"patching: got str, want a Pair or a Sequence: mf.Pair\(pre, post\)",
        ),
        (lambda pair, task: measures.weights("pre"), "weights: got str, want a Pair or a Sequence"),
        (
            lambda pair, task: measures.patching(toy.pair()[2], dtype="float64"),
            "patching: dtype: these inputs are open already",
        ),
    ],
)
def test_what_a_measure_can_not_take_is_refused_in_a_line(call, words, folders, monkeypatch):
    """Catches a TypeError or an AttributeError after both models were opened, and a setting that is
    dropped in silence."""
    toy.pair()

    def fail(*args, **kwargs):
        raise AssertionError("a model was opened")

    monkeypatch.setattr(models, "open", fail)
    with pytest.raises(MeasureError, match=words) as refused:
        call(Pair(*folders[:2]), toy.task())
    assert "\n" not in str(refused.value)


def test_help_names_a_measures_settings_and_how_models_run():
    """Catches a signature of (*args, **kwargs), which completes nothing in a notebook."""
    names = list(inspect.signature(measures.patching).parameters)
    assert names[:3] == ["subject", "task", "site"] and names[-6:] == list(running.NAMES)
    assert list(inspect.signature(measures.curvature).parameters).count("memory") == 1


def test_a_measure_of_open_inputs_is_the_same_as_of_their_pair(folders):
    """Catches a decorator that changes a number on the way."""
    pair, task = Pair(*folders[:2]), toy.task()
    inputs = measures.Inputs.of(pair, task, loading=Running().loading)
    for name in ("forgetting", "logit_attribution"):
        one, other = getattr(measures, name)(inputs), getattr(measures, name)(pair, task)
        for variable in one.data_vars:
            np.testing.assert_array_equal(one[variable], other[variable])
