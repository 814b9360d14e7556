"""What a backend must show before a number of it is believed: sabotaged, it is found out."""

import copy
from collections import OrderedDict

import pytest
import torch

from mechforget import checkpoints, models
from mechforget.errors import ModelError
from mechforget.models import opening
from mechforget.models.proof import prove, reference
from mechforget.models.sites import ACTIVATIONS, EXPERT, MATRICES
from mechforget.models.transformer_lens import TransformerLens
from tests.tiny import FAMILIES, save_tiny, tiny_model


def proven(kind, family="llama"):
    hf_model = tiny_model(family)
    expected = reference(hf_model)
    model = kind(hf_model)
    prove(model, expected)
    return model


def silent(point):
    """A backend whose hook at one point is read but never obeyed."""

    class Silent(TransformerLens):
        def run(self, ids, rewrites, parent=None):
            def deaf(fn):
                def read_only(t):
                    fn(t.clone())

                return read_only

            rewrites = {p: deaf(fn) if p[1] == point else fn for p, fn in rewrites.items()}
            return super().run(ids, rewrites, parent)

    return Silent


def misread(name, kind):
    """A backend whose heads at one site are another's, or whose two sites' names are exchanged."""

    class Misread(kind):
        def run(self, ids, rewrites, parent=None):
            def next_unit(fn):
                def turned(t):
                    new = fn(t.roll(1, 2))
                    return None if new is None else new.roll(-1, 2)

                return turned

            if len(name) == 1:
                rewrites = {p: next_unit(f) if p[1] == name else f for p, f in rewrites.items()}
            other = dict(zip(name, reversed(name), strict=True))
            return super().run(
                ids, {(layer, other.get(n, n)): f for (layer, n), f in rewrites.items()}, parent
            )

    return Misread


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *(("q", "phi3"), ("k", "phi3"), ("v", "olmo2")),
        *(("qk", "gpt2"), ("kv", "llama"), ("qv", "gpt_neox")),
    ],
)
def test_units_that_are_not_what_they_are_called_are_left_out(name, family):
    """Catches heads in another order and q, k, v in another: writing there moves the logits, too."""
    hf_model = tiny_model(family)
    expected = reference(hf_model)
    model = misread(name, TransformerLens)(hf_model)
    prove(model, expected)
    lost = {"q", "k", "v", "W_Q", "W_K", "W_V"}
    assert {*ACTIVATIONS, *MATRICES} - {*EXPERT} - model.spec.sites - {"resid_mid"} == lost
    assert "; left out: k, q, v" in model.proofs[-1].detail


def test_other_logits_are_refused():
    """Catches a backend that folds, centres or mis-scales, and believes itself."""

    class Wrong(TransformerLens):
        def run(self, ids, rewrites, parent=None):
            return super().run(ids, rewrites, parent) * (1 + 1e-4)

    class NaN(TransformerLens):
        def run(self, ids, rewrites, parent=None):
            return super().run(ids, rewrites, parent) * float("nan")

    for kind in (Wrong, NaN):
        with pytest.raises(ModelError, match="gives other logits than Hugging Face for llama"):
            proven(kind)


def test_double_precision_is_held_to_more_than_bfloat16_is():
    """Catches a tolerance that takes every dtype but float32 for a coarse one."""

    class Wrong(TransformerLens):
        def run(self, ids, rewrites, parent=None):
            return super().run(ids, rewrites, parent) * (1 + 1e-3)

    hf_model = tiny_model().double()
    expected = reference(hf_model)
    with pytest.raises(ModelError, match="other logits"):
        prove(Wrong(hf_model), expected)


def test_appended_rows_that_differ_are_refused():
    """Catches a batch whose masks, positions or capacity do not follow appended rows."""

    class Leaky(TransformerLens):
        def run(self, ids, rewrites, parent=None):
            logits = super().run(ids, rewrites, parent)
            logits[len(ids) :] += 0.1
            return logits

    with pytest.raises(ModelError, match="rows appended to a llama batch give other logits"):
        proven(Leaky)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe", "llama4_text"])
def test_halves_may_round_by_the_size_of_the_batch(family, monkeypatch):
    """Catches a mixture that is refused because in a batch that grew, as GPUs multiply halves, a
    tie of two experts falls to the other one."""
    hf_model = tiny_model(family).bfloat16()
    for name, weight in hf_model.named_parameters():
        if name.endswith(("gate.weight", "router.weight")):
            weight.data = weight[:1] + 0.01 * weight  # every choice is nearly a tie

    def rounds(linear):
        def forward(x):
            noise = torch.rand(
                linear.weight.shape[0], generator=torch.Generator().manual_seed(len(x))
            )
            y = torch.nn.functional.linear(x.float(), linear.weight.float())
            return (y * (1 + 0.004 * (noise - 0.5))).to(x.dtype)

        return forward

    for module in hf_model.modules():
        if type(module).__name__ == "Linear":
            module.forward = rounds(module)
    monkeypatch.setattr(opening.half, "slow", lambda model: False)
    spec = opening.proven(hf_model, "nnsight").spec
    assert {"router", "expert_out", "z", "mlp_out"} <= spec.sites


@pytest.mark.parametrize(
    ("point", "lost"),
    [
        ("q", {"q", "W_Q"}),
        ("k", {"k", "W_K"}),
        ("v", {"v", "W_V"}),
        ("pattern", {"pattern"}),
        ("z", {"z", "head_out", "W_O"}),  # a head's output cannot be taken out either
        ("attn_raw", {"head_out", "W_O"}),
        ("attn_out", {"attn_out", "resid_mid"}),
        ("mlp_out", {"mlp_out"}),
        ("resid_post", {"resid_post"}),
    ],
)
def test_a_dead_hook_takes_its_sites_with_it(point, lost):
    """Catches sites that are offered although writing there does nothing."""
    model = proven(silent(point))
    assert {*ACTIVATIONS, *MATRICES} - {*EXPERT} - model.spec.sites == lost
    assert "; left out: " in model.proofs[-1].detail


def test_writing_back_what_was_read_must_change_nothing():
    """Catches a hook that rounds, clamps or reorders what it is given back."""

    class Rounds(TransformerLens):
        def run(self, ids, rewrites, parent=None):
            def coarse(fn):
                return lambda t: None if (new := fn(t)) is None else new * 1.01

            rewrites = {p: coarse(fn) if p == (1, "z") else fn for p, fn in rewrites.items()}
            return super().run(ids, rewrites, parent)

    with pytest.raises(ModelError, match="writing a llama model's activations back moves"):
        proven(Rounds)


def test_heads_that_do_not_sum_are_not_offered_one_by_one():
    """Catches W_O sliced along the wrong axis or in another head order."""

    class Shifted(TransformerLens):
        def weight(self, layer, matrix, head):
            return super().weight(layer, matrix, (head + (matrix == "W_O")) % self.heads)

    model = proven(Shifted)
    assert not model.spec.sites & {"head_out", "W_O"} and {"z", "q"} <= model.spec.sites
    assert [p.passed for p in model.proofs].count(False) == 1


def test_a_residual_stream_that_is_no_sum_has_no_middle():
    """Catches `resid_mid` and logit attribution where contributions don't add up."""

    class Scaled(TransformerLens):
        def run(self, ids, rewrites, parent=None):
            def doubled(fn):
                def lied_to(t):
                    new = fn(t * 2)
                    return None if new is None else new / 2

                return lied_to

            rewrites = {p: doubled(f) if p[1] == "mlp_out" else f for p, f in rewrites.items()}
            return super().run(ids, rewrites, parent)

    model = proven(Scaled)
    assert model.spec.residual_scale is None and "resid_mid" not in model.spec.sites


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_parameter_is_in_exactly_one_part(family):
    """Catches weights that no graft reaches, or that two do; and parts of one layer in another."""
    model = TransformerLens(tiny_model(family))
    every = {id(p) for p in model.module.parameters()}
    parts = [model.parameters(part) for part in ("attention", "mlp", "rest")]
    got = [id(p) for part in parts for p in part]
    assert len(got) == len(every) and set(got) == every
    layers = range(model.layers)
    for part, whole in zip(("attention", "mlp"), parts, strict=False):
        by_layer = [id(p) for layer in layers for p in model.parameters(part, layer)]
        assert sorted(by_layer) == sorted(map(id, whole)) and by_layer
    norms = [p for p in parts[2] if p.shape == (model.config.hidden_size,)]
    assert norms  # norms belong to the rest


@pytest.fixture
def shelf(monkeypatch):
    """An empty cache of open models."""
    kept = OrderedDict()
    monkeypatch.setattr(opening, "_open", kept)
    return kept


def test_opening_twice_gives_one_model_and_the_last_three_stay(shelf, tmp_path):
    """Catches a reload per measure, and a cache that keeps all or forgets the one in use."""
    found = [checkpoints.open(save_tiny(tmp_path / str(i), seed=i)) for i in range(4)]
    first = models.open(found[0])
    models.open(found[1]), models.open(found[2])
    assert models.open(found[0]) is first and len(shelf) == 3
    models.open(found[3])  # the one that was not used for longest goes
    assert [c for c, *_ in shelf] == [found[2], found[0], found[3]]
    assert all(p.passed for p in first.proofs) and len(first.proofs) == 5


def test_a_folder_that_was_written_anew_is_loaded_anew(shelf, tmp_path):
    """Catches a notebook that trains into the same folder twice and measures the first model."""
    ids = torch.arange(6)[None]
    first = models.open(checkpoints.open(save_tiny(tmp_path, seed=0))).run(ids, {})
    again = models.open(checkpoints.open(save_tiny(tmp_path, seed=1))).run(ids, {})
    torch.testing.assert_close(again, tiny_model(seed=1)(ids).logits)
    assert (first - again).abs().max() > 0.1


def test_what_training_left_alone_is_held_once(shelf, tmp_path):
    """Catches two whole copies in memory, and sharing of what differs."""
    model = tiny_model()
    save_tiny(tmp_path / "pre")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[3, 3] += 1
    save_tiny(tmp_path / "post")
    model.save_pretrained(tmp_path / "post")
    pre, post = (models.open(checkpoints.open(tmp_path / name)) for name in ("pre", "post"))
    pairs = zip(pre.module.parameters(), post.module.parameters(), strict=True)
    apart = [(a, b) for a, b in pairs if a.data_ptr() != b.data_ptr()]
    assert len(apart) == 1 and (apart[0][0] != apart[0][1]).sum() == 1


def test_a_model_of_another_size_can_be_opened_beside(shelf, tmp_path):
    """Catches sharing between models that only have their family in common."""
    models.open(checkpoints.open(save_tiny(tmp_path / "small")))
    config = copy.deepcopy(tiny_model().config)
    config.num_hidden_layers = 2
    large = type(tiny_model())(config)
    save_tiny(tmp_path / "large")
    large.save_pretrained(tmp_path / "large")
    assert models.open(checkpoints.open(tmp_path / "large")).spec.layers == 2


def test_bfloat16_opens_and_nonsense_does_not(shelf, tmp_path):
    """Catches tolerances that only float32 meets, and settings refused after the loading."""
    checkpoint = checkpoints.open(save_tiny(tmp_path))
    model = models.open(checkpoint, models.Loading(dtype="bfloat16"))
    assert {*ACTIVATIONS, *MATRICES} - {*EXPERT} == model.spec.sites
    assert next(model.module.parameters()).dtype == torch.bfloat16
    with pytest.raises(ModelError, match="dtype 'int8': want float32, float64, bfloat16"):
        models.open(checkpoint, models.Loading(dtype="int8"))
    with pytest.raises(ModelError, match="backend 'nope' is unknown; backends: transformer_lens"):
        models.open(checkpoint, models.Loading(backend="nope"))
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="device 'cuda' is not usable here"):
            models.open(checkpoint, models.Loading(device="cuda"))
