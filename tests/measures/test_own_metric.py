"""A metric of one's own: the built-in ones written as such give the same numbers everywhere, and its
gradient is that of finite differences."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

from mechforget import measures
from mechforget.errors import MeasureError, SweepError
from mechforget.measures import Inputs
from mechforget.models.remote import Remote
from mechforget.sweeps.donor import capture
from mechforget.sweeps.gradients import gradients
from mechforget.sweeps.metric import Metric, Reads
from tests import oracle
from tests.measures import toy


def own_log_prob(logits, reads):
    log_p = logits.log_softmax(-1).gather(1, reads.target[:, None])[:, 0]
    return reads.sum(torch.where(reads.wrong, 0, log_p))


def own_logit_diff(logits, reads):
    log_p = logits.log_softmax(-1).gather(1, reads.target[:, None])[:, 0]
    there = reads.sum(reads.wrong.float()) > 0
    return torch.where(there, reads.sum(torch.where(reads.wrong, -log_p, log_p)), torch.nan)


def first_token(logits, reads):
    """Raw logit of the right answer's first token: what no built-in metric sees."""
    here = (reads.position == 0) & ~reads.wrong
    return reads.sum(torch.where(here, logits.gather(1, reads.target[:, None])[:, 0], 0))


first_token.units = "logits"
SAME = {own_log_prob: "log_prob", own_logit_diff: "logit_diff"}


def ranked(inputs):
    return measures.patching(inputs).effect.sel(metric="log_prob", direction="restore")


CALLS = {
    "forgetting": lambda i, m: measures.forgetting(i, metric=m).score,
    "patching": lambda i, m: measures.patching(i, metric=m).effect,
    "patching by position": lambda i, m: (
        measures.patching(i, site="resid_post", positions=[4, 6], metric=m).effect
    ),
    "some heads": lambda i, m: (
        measures.patching(i, site="z", heads=[(1, 0), (2, 3)], metric=m).effect
    ),
    "grafting": lambda i, m: measures.grafting(i, matrices=("q", "v", "all"), metric=m).effect,
    "grafting modules": lambda i, m: measures.grafting_modules(i, metric=m).block,
    "sets": lambda i, m: measures.top_sets(i, effect=ranked(i), sizes=(1, 2), metric=m).top,
    "random sets": lambda i, m: (
        measures.top_sets(i, effect=ranked(i), sizes=(1, 2), metric=m).random
    ),
    "attribution": lambda i, m: measures.attribution(i, site="z", metric=m).effect,
    "integrated": lambda i, m: (
        measures.attribution(i, site="z", method="integrated", steps=2, metric=m).effect
    ),
    "softmax": lambda i, m: measures.attribution(i, site="q", method="softmax", metric=m).effect,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("metric", SAME)
def test_the_built_in_metrics_can_be_written_as_ones_own(call, metric):
    """Catches a wrong axis, sign, prompt, read or direction, answers of several tokens cut to one,
    and a prompt for which the metric isn't defined that counts as 0."""
    assert max(toy.encoded().n_answer) > 2 and not toy.encoded().has_wrong.all()
    found = CALLS[call](toy.pair()[2], metric)
    mine, theirs = (found.sel(metric=name) for name in (metric.__name__, SAME[metric]))
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=2e-5)
    if "direction" in found.dims:
        for direction in ("restore", "break"):
            assert abs(mine.sel(direction=direction)).max() > 1e-3
    plain = CALLS[call](toy.pair()[2], None)
    assert metric.__name__ not in plain.metric.values and "unit" not in plain.coords
    np.testing.assert_array_equal(found.sel(metric=plain.metric), plain)  # nothing else moved


@pytest.mark.parametrize("backend", ["transformer_lens", "nnsight"])
def test_a_metric_that_is_not_built_in_equals_a_plain_forward(backend):
    """Catches logits that were normalised on the way, of another position, or in chunks mixed up."""
    hf_pre, hf_post, inputs = toy.pair()
    if backend == "nnsight":
        inputs = Inputs(*(toy.opened(m, "nnsight") for m in (hf_pre, hf_post)), toy.encoded())
    batch, ids = toy.encoded(), torch.as_tensor(toy.encoded().ids)

    def want(logits):
        at = {}
        for row, position, target, prompt, wrong in zip(
            batch.read_row,
            batch.read_position,
            batch.read_target,
            batch.read_prompt,
            batch.read_wrong,
            strict=True,
        ):
            if not wrong and prompt not in at:  # the first of a prompt comes first
                at[prompt] = float(logits[row, position, target])
        return np.array([at[prompt] for prompt in range(batch.n_prompts)])

    found = measures.patching(dataclasses.replace(inputs, memory=6e-4), metric=first_token)
    mixed = want(oracle.patched(hf_post, hf_pre, ids, ids, 1, "head_out", 2))
    effect = mixed - want(oracle.run(hf_post, ids))
    got = found.effect.sel(metric="first_token", direction="restore", layer=1, head=2)
    np.testing.assert_allclose(got, effect, atol=1e-4)
    assert abs(effect).max() > 0.1
    assert found.unit.sel(metric="first_token") == "logits"
    assert found.unit.sel(metric="correct") == "share"
    own_log_prob.__dict__.pop("units", None)
    assert measures.patching(inputs, metric=own_log_prob).unit.values[-1] == "1"


@pytest.mark.parametrize("metric", [own_logit_diff, first_token])
def test_its_gradient_is_that_of_finite_differences(metric):
    """Catches a gradient of another metric, of a sum over the wrong prompts, and NaN that spreads
    from prompts for which the metric isn't defined."""
    hf_pre, _, inputs = toy.pair()
    batch, point = toy.encoded(), (1, "resid_post")
    exact = copy.deepcopy(hf_pre).double()
    ids = torch.as_tensor(batch.ids)
    start = capture(inputs.pre, ids, [point])[point]
    found = gradients(inputs.pre, batch, [point], metric=Metric.of(metric))
    g = found.activations[point]
    assert bool(g.isfinite().all())

    def value(moved):
        hook = exact.model.layers[1].register_forward_hook(lambda *_: moved)
        try:
            logits = exact(ids, use_cache=False).logits[batch.read_row, batch.read_position]
        finally:
            hook.remove()
        return metric(logits, Reads.of(batch, "cpu"))

    generator = torch.Generator().manual_seed(0)
    step = torch.randn(start.shape, generator=generator, dtype=torch.float64)
    eps = 3e-3  # Hugging Face's norms and softmax are in float32, whatever the model is in
    with torch.no_grad():
        ends = [value(start.double() + sign * eps * step) for sign in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * eps)
    by_row = (g.double() * step).flatten(1).sum(1).numpy()
    mine = np.bincount(batch.row_prompt, by_row, batch.n_prompts)
    defined = ~np.isnan(slope.numpy())
    np.testing.assert_allclose(mine[defined], slope.numpy()[defined], rtol=2e-3, atol=5e-3)
    assert (mine[~defined] == 0).all() and np.isnan(found.own[~defined]).all()


def mean_over_prompts(logits, reads):
    return own_log_prob(logits, reads).mean().repeat(reads.n_prompts)


def a_number(logits, reads):
    return 1.0


def by_read(logits, reads):
    return logits.max(-1).values


def hits(logits, reads):
    return reads.sum((logits.argmax(-1) == reads.target).float())


def called(name):
    def fn(logits, reads):
        return own_log_prob(logits, reads)

    fn.__name__ = name
    return fn


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("logit_diff", "metric 'logit_diff': want a function of .logits, reads.; log_prob, logit"),
        (lambda logits, reads: None, "metric <lambda>: it names its results"),
        (called("correct"), "metric correct: .* other than log_prob, logit_diff, correct, prefer"),
        (mean_over_prompts, "metric mean_over_prompts: the first prompt's number is .* its own r"),
        (a_number, "metric a_number gave float: want a tensor .prompt., here "),
        (by_read, r"metric by_read gave \(\d+,\): want a tensor .prompt., here "),
    ],
)
def test_what_is_no_metric_is_refused_in_a_line(metric, words):
    """Catches a number for all prompts that is spread over each, and results under a taken name."""
    inputs = toy.pair()[2]
    for call in (measures.patching, measures.attribution):
        with pytest.raises(MeasureError, match=words) as refused:
            call(inputs, site="z", metric=metric)
        assert "\n" not in str(refused.value)


def test_a_metric_without_a_gradient_is_patched_and_not_attributed():
    """Catches torch's own words for it, and a gradient of nothing that is taken for 0."""
    inputs = toy.pair()[2]
    assert abs(measures.patching(inputs, metric=hits).effect.sel(metric="hits")).max() >= 1
    with pytest.raises(SweepError, match="metric hits has no gradient"):
        measures.attribution(inputs, metric=hits)


def test_no_function_is_sent_to_a_server():
    """Catches a pickle of the user's code, or a metric that is dropped in silence."""
    there = object.__new__(Remote)
    there.spec = toy.pair()[2].post.spec
    inputs = Inputs(there, there, toy.encoded())
    effect = ranked(toy.pair()[2])
    for call in (
        lambda: measures.patching(inputs, metric=own_log_prob),
        lambda: measures.grafting(inputs, metric=own_log_prob),
        lambda: measures.grafting_modules(inputs, metric=own_log_prob),
        lambda: measures.grafting_experts(inputs, metric=own_log_prob),
        lambda: measures.top_sets(inputs, effect=effect, metric=own_log_prob),
        lambda: measures.attribution(inputs, metric=own_log_prob),
        lambda: measures.forgetting(inputs, metric=own_log_prob),
    ):
        with pytest.raises(MeasureError, match="own_log_prob: a Python function is not sent to a"):
            call()


def test_a_pairs_result_names_the_metric(tmp_path):
    """Catches a setting that is written down as an address in memory."""
    from mechforget.checkpoints import Pair
    from tests.tiny import save_tiny

    pair = Pair(save_tiny(tmp_path / "a", seed=0), save_tiny(tmp_path / "b", seed=1))
    found = measures.forgetting(pair, toy.task(), metric=own_log_prob)
    assert json.loads(found.attrs["settings"]) == {"metric": "own_log_prob"}
    assert json.loads(found.score.attrs["units_by_metric"])["own_log_prob"] == "1"
