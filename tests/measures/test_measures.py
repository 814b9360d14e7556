"""Measures against plain Hugging Face hooks, numpy, scipy, and damage planted in known heads."""

import copy

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from mechforget import measures
from mechforget.checkpoints import Pair, Sequence
from mechforget.errors import MeasureError
from mechforget.measures import Inputs
from mechforget.measures.attention_change import change, js, patterns
from mechforget.measures.grafting import graft_parts
from mechforget.measures.patching import completeness
from mechforget.models.opening import proven
from mechforget.statistics import rank
from mechforget.tasks import Task
from tests import oracle
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def task():
    import pandas as pd

    names = ("France", "Italy", "Spain", "Japan", "Peru", "Germany", "Egypt", "Chile")
    answers = ("Paris", "Rome", "Madrid", "Tokyo", "Lima", "Berlin", "two dogs", "one")
    rows = [
        {"prompt": f"The capital of {n} is", "answer": a}
        for n, a in zip(names, answers, strict=True)
    ]
    return Task("toy", pd.DataFrame(rows), "toy")


def opened(hf_model, backend="transformer_lens"):
    """The package's model around a copy, so that the oracle keeps an unwrapped one."""
    return proven(copy.deepcopy(hf_model), backend)


def inputs(hf_pre, hf_post, encoded=None):
    encoded = task().encode(TOKENIZER) if encoded is None else encoded
    return Inputs(opened(hf_pre), opened(hf_post), encoded)


def scores(encoded, logits):
    """Every metric by plain indexing."""
    log_prob = oracle.log_probs(
        logits, encoded.read_row, encoded.read_position, encoded.read_target
    )
    best = logits.argmax(-1)[encoded.read_row, encoded.read_position].numpy()
    found = {"log_prob": [], "logit_diff": [], "correct": []}
    for prompt in range(encoded.n_prompts):
        right = (encoded.read_prompt == prompt) & ~encoded.read_wrong
        wrong = (encoded.read_prompt == prompt) & encoded.read_wrong
        found["log_prob"].append(log_prob[right].sum())
        found["logit_diff"].append(
            log_prob[right].sum() - log_prob[wrong].sum() if wrong.any() else np.nan
        )
        found["correct"].append(float((best == encoded.read_target)[right].all()))
    return {k: np.array(v) for k, v in found.items()}


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama", 1), tiny_model("llama", 0)


def test_forgetting_and_both_directions_of_patching_equal_plain_hooks(llama):
    """Catches a swapped donor, a flipped sign, metrics mixed up, and prompts out of order."""
    pre, post = llama
    given = inputs(pre, post)
    e, ids = given.encoded, torch.as_tensor(given.encoded.ids)
    plain = {name: scores(e, oracle.run(m, ids)) for name, m in (("pre", pre), ("post", post))}
    found = measures.forgetting(given).score
    for name in plain:
        for metric, want in plain[name].items():
            np.testing.assert_allclose(found.sel(at=name, metric=metric), want, atol=1e-4)
    for site in ("z", "head_out", "k", "mlp_out"):
        effect = measures.patching(given, site=site).effect
        for layer, head in ((0, 1), (2, 2)):
            where = {"layer": layer} | ({"head": head} if "head" in effect.dims else {})
            unit = {"k": head // 2, "mlp_out": None}.get(site, head)
            restored = scores(e, oracle.patched(post, pre, ids, ids, layer, site, unit))
            broken = scores(e, oracle.patched(pre, post, ids, ids, layer, site, unit))
            for metric in restored:
                at = effect.sel(metric=metric, **where)
                want = restored[metric] - plain["post"][metric]
                np.testing.assert_allclose(at.sel(direction="restore"), want, atol=2e-4)
                want = plain["pre"][metric] - broken[metric]
                np.testing.assert_allclose(at.sel(direction="break"), want, atol=2e-4)


def test_positions_beyond_a_prompt_are_empty_and_last_residual_restores_all(llama):
    """Catches padding counted as a position, and an incomplete set of what pre brings."""
    given = inputs(*llama)
    effect = measures.patching(
        given, site="resid_pre", positions=range(given.encoded.ids.shape[1])
    ).effect
    longest = np.zeros(given.encoded.n_prompts, int)
    np.maximum.at(longest, given.encoded.row_prompt, given.encoded.length)
    beyond = np.arange(effect.sizes["position"])[:, None] >= longest
    log_prob = effect.sel(metric="log_prob", direction="restore", layer=1)
    np.testing.assert_array_equal(np.isnan(log_prob.transpose("position", "prompt")), beyond)
    assert completeness(given) < 1e-4


def test_grafting_everything_gives_the_donor_and_modules_equal_surgery(llama):
    """Catches a parameter that belongs to no part, or to two."""
    pre, post = llama
    given = inputs(pre, post)
    e, ids = given.encoded, torch.as_tensor(given.encoded.ids)
    lost = (
        scores(e, oracle.run(pre, ids))["log_prob"] - scores(e, oracle.run(post, ids))["log_prob"]
    )
    every = graft_parts(given, e, [[(part, None) for part in ("attention", "mlp", "rest")]])[
        :, :, 0
    ]
    np.testing.assert_allclose(every[0, 0], lost, atol=1e-4)
    np.testing.assert_allclose(every[0, 1], lost, atol=1e-4)
    modules = measures.grafting_modules(given)
    mixed = copy.deepcopy(post)
    mixed.model.layers[1].mlp.load_state_dict(pre.model.layers[1].mlp.state_dict())
    want = (
        scores(e, oracle.run(mixed, ids))["log_prob"] - scores(e, oracle.run(post, ids))["log_prob"]
    )
    got = modules.mlp.sel(metric="log_prob", direction="restore", layer=1)
    np.testing.assert_allclose(got, want, atol=1e-4)
    for part in ("attention", "mlp", "rest"):
        model = given.post
        others = [
            id(p) for q in ("attention", "mlp", "rest") if q != part for p in model.parameters(q)
        ]
        assert not {id(p) for p in model.parameters(part)} & set(others)


@pytest.mark.parametrize("matrix", ["q", "k", "v", "o"])
def test_planted_damage_is_found_where_it_was_planted(llama, matrix):
    """The proof of the toolkit: grafting ranks scrambled heads on top for every matrix; z patching
    sees all but W_O, which only head_out sees; nothing else has any grafting effect."""
    pre, donor = llama
    planted = (1, 2)
    post = oracle.grafted(pre, donor, *planted, matrix)
    given = inputs(pre, post)
    hit = {planted} | ({(1, 3)} if matrix in "kv" else set())  # a group of two heads shares k and v
    effect = measures.grafting(given).effect.sel(metric="log_prob", matrix="all")
    for direction in ("restore", "break"):
        size = abs(effect.sel(direction=direction)).mean("prompt")
        nonzero = {(int(a), int(b)) for a, b in np.argwhere(size.values > 0)}
        assert nonzero == hit
    z, head_out = (
        abs(measures.patching(given, site=s).effect.sel(metric="log_prob", direction="restore"))
        .mean("prompt")
        .sel(layer=1)
        for s in ("z", "head_out")
    )
    assert {int(h) for h in np.flatnonzero(head_out)} == {h for _, h in hit}
    assert {int(h) for h in np.flatnonzero(z)} == (set() if matrix == "o" else {h for _, h in hit})


def test_a_compensated_rotation_moves_z_and_nothing_else(llama):
    """Catches head_out with the wrong checkpoint's W_O: W_V R and Rᵀ W_O change nothing."""
    pre, _ = llama
    post = copy.deepcopy(pre)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))
    attention = post.model.layers[1].self_attn
    with torch.no_grad():
        attention.v_proj.weight[8:16] = rotation @ attention.v_proj.weight[8:16]
        for head in (2, 3):  # the heads of group 1
            columns = slice(8 * head, 8 * head + 8)
            attention.o_proj.weight[:, columns] = attention.o_proj.weight[:, columns] @ rotation.T
    given = inputs(pre, post)
    z, head_out = (
        abs(measures.patching(given, site=s).effect.sel(metric="log_prob", layer=1)).max()
        for s in ("z", "head_out")
    )
    assert z > 0.05 and head_out < 1e-4


def test_top_sets_are_judged_on_the_other_half(llama):
    """Catches a set chosen by the prompts that judge it, and random sets of other layers."""
    given = inputs(*llama)
    effect = measures.patching(given).effect.sel(metric="log_prob", direction="restore")
    found = measures.top_sets(given, effect=effect, sizes=(1, 2))
    values = effect.transpose("layer", "head", "prompt").values.reshape(12, -1)
    judged = found.judged_in.values
    for half in (0, 1):
        order = rank(values, judged != half)
        assert [tuple(x) for x in found.chosen.values[half, 1]] == [
            divmod(int(i), 4) for i in order[:2]
        ]
        one = values[order[0]][judged == half]
        got = found.top.sel(metric="log_prob", k=1).values[judged == half]
        np.testing.assert_allclose(got, one, atol=1e-4)


def test_attention_change_equals_scipy_row_by_row(llama):
    """Catches natural logs, padding in the mean, a missing square, the first query counted."""
    given = inputs(*llama)
    e = given.encoded
    pre, post = patterns(given.pre, e), patterns(given.post, e)
    found = measures.attention_change(given)
    rows = np.searchsorted(e.row_prompt, np.arange(e.n_prompts))
    for prompt in (0, 6):
        length = e.length[rows[prompt]]
        each = [
            jensenshannon(pre[1, prompt, 2, q], post[1, prompt, 2, q], base=2) ** 2
            for q in range(1, length)
        ]
        got = found.js.sel(layer=1, head=2).values[prompt]
        np.testing.assert_allclose(got, np.mean(each), atol=1e-6)
        last = e.prompt_length[rows[prompt]] - 1
        np.testing.assert_allclose(
            found.js_last.sel(layer=1, head=2).values[prompt], each[last - 1], atol=1e-6
        )
        first = post[1, prompt, 2, 1:length, 0].mean()
        np.testing.assert_allclose(
            found["first"].sel(at="post", layer=1, head=2).values[prompt], first
        )
    assert js(np.array([1.0, 0]), np.array([0.0, 1])) == 1
    assert js(np.array([0.5, 0.5]), np.array([0.5, 0.5])) == 0
    assert js(np.array([0.5, 0]), np.array([0.0, 0.5])) == 0.5  # half of each row is in the sink
    assert (change(pre, pre, e).js == 0).all()


def test_a_sequence_has_a_checkpoint_dimension_and_wrong_inputs_are_refused(tmp_path):
    """Catches a measure that only takes pairs, and a missing task that fails later."""
    for seed in (0, 1, 2):
        save_tiny(tmp_path / str(seed), "llama", seed)
    sequence = Sequence([tmp_path / str(seed) for seed in (0, 1, 2)])
    found = measures.forgetting(sequence, task())
    assert found.sizes["checkpoint"] == 2
    first = measures.forgetting(Pair(tmp_path / "0", tmp_path / "1"), task())
    np.testing.assert_array_equal(found.score.sel(checkpoint=1), first.score)
    with pytest.raises(MeasureError, match="task is missing"):
        measures.patching(sequence)
    with pytest.raises(MeasureError, match="corrupted counterpart"):
        measures.clean_corrupt(Pair(tmp_path / "0", tmp_path / "1"), task())


def test_clean_corrupt_equals_plain_hooks(llama):
    """Catches denoise and noise exchanged, and answers taken from the corrupted prompt."""
    import pandas as pd

    pre, post = llama
    rows = pd.DataFrame(
        {
            "prompt": ["The capital of France is", "The capital of Italy is"],
            "corrupted": ["The capital of Italy is", "The capital of France is"],
            "answer": ["Paris", "Rome"],
        }
    )
    clean = Task("pairs", rows, "pairs")
    swapped = Task(
        "pairs", rows.assign(prompt=rows["corrupted"]).drop(columns="corrupted"), "pairs"
    )
    e, other = (t.encode(TOKENIZER) for t in (clean, swapped))
    assert e.ids.shape == other.ids.shape
    given = Inputs(opened(pre), opened(post), e, other)
    effect = measures.clean_corrupt(given, site="z").effect.sel(metric="log_prob", layer=1, head=2)
    ids, bad = torch.as_tensor(e.ids), torch.as_tensor(other.ids)
    for at, model in (("pre", pre), ("post", post)):
        base = scores(other, oracle.run(model, bad))["log_prob"]
        fixed = scores(other, oracle.patched(model, model, bad, ids, 1, "z", 2))["log_prob"]
        np.testing.assert_allclose(effect.sel(at=at, direction="denoise"), fixed - base, atol=1e-4)
        base = scores(e, oracle.run(model, ids))["log_prob"]
        broken = scores(e, oracle.patched(model, model, ids, bad, 1, "z", 2))["log_prob"]
        np.testing.assert_allclose(effect.sel(at=at, direction="noise"), base - broken, atol=1e-4)
