"""Random trees against one prompt at a time: whatever prompts share, each says what it says alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechforget.models.sites import ACTIVATIONS
from mechforget.sweeps.curvature import hessian
from mechforget.sweeps.donor import Donor
from mechforget.sweeps.gradients import several_gradients
from mechforget.sweeps.gram import gram
from mechforget.sweeps.plan import graft, single
from mechforget.sweeps.reads import read
from mechforget.sweeps.run import sweep
from mechforget.tasks.encoded import Encoded, grouped, packed
from tests.sweeps.test_run import opened
from tests.tiny import tiny_model

LETTERS = st.integers(
    3, 5
)  # few, so that prompts share beginnings, are equal, or one begins another
PROMPT = st.tuples(
    st.lists(LETTERS, min_size=1, max_size=5),
    st.lists(LETTERS, min_size=1, max_size=3),  # the right answer
    st.lists(LETTERS, min_size=1, max_size=3),  # the wrong one
)
PROMPTS = st.lists(PROMPT, min_size=1, max_size=6)


def encoded(prompts):
    """Prompts as the package encodes them; an answer that continues another shares its row."""
    rows, owner, reads = [], [], []
    for p, (start, right, wrong) in enumerate(prompts):
        first = len(rows)
        fed = [right[:-1], wrong[:-1]]
        longest = max(fed, key=len)
        if all(longest[: len(part)] == part for part in fed):
            fed = [longest]
        for k, answer in enumerate((right, wrong)):
            row = first + min(k, len(fed) - 1)
            reads += [(row, len(start) - 1 + j, t, p, k == 1) for j, t in enumerate(answer)]
        rows += [start + part for part in fed]
        owner += [p] * len(fed)
    length = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), length.max()), int)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = row
    row, position, target, prompt, wrong = np.array(reads).T
    starts = np.array([len(prompts[p][0]) for p in owner])
    return Encoded(
        ids=ids,
        length=length,
        row_prompt=np.array(owner),
        prompt_length=starts,
        read_row=row,
        read_position=position,
        read_target=target,
        read_prompt=prompt,
        read_wrong=wrong.astype(bool),
        cluster=np.arange(len(prompts)),
    )


def in_trees(batch, other, quadratic):
    groups = grouped(batch, other, nodes=30, quadratic=quadratic)
    return *packed(batch, other, groups=groups)[0], packed(batch, groups=groups)[1]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def pair(request):
    return tuple(opened(tiny_model(request.param, seed)) for seed in (0, 1))


@settings(max_examples=12, deadline=None)
@given(PROMPTS, st.sampled_from([2.0, 40.0]), st.sampled_from(sorted(ACTIVATIONS)), st.data())
def test_a_sweep_of_any_tree_is_that_of_each_prompt(pair, prompts, quadratic, site, data):
    """Catches, at every site, all positions and one: a token on another's path, reads of another
    prompt, a position that isn't the token's own, and corrupted prompts that are shared although
    they differ."""
    post, pre = pair
    if site not in post.spec.sites:
        return
    batch = encoded(prompts)
    ids = batch.ids.copy()
    swapped = data.draw(st.lists(st.booleans(), min_size=len(prompts), max_size=len(prompts)))
    ids[np.array(swapped)[batch.row_prompt], 0] = 6  # some donors' prompts begin otherwise
    other = Encoded(**{**vars(batch), "ids": ids})
    variants = single(post.spec, site, (None, 0, batch.ids.shape[1] - 1))
    variants.append(graft(post.spec, 1, 2, "all"))
    one, two, order = in_trees(batch, other, quadratic)
    found = sweep(post, one, Donor.of(pre, two, variants), variants)
    scores = one.score(*found)
    for place, prompt in enumerate(order):
        alone, source = (e.subset(np.array([prompt])) for e in (batch, other))
        want = alone.score(*sweep(post, alone, Donor.of(pre, source, variants), variants))
        for metric in ("log_prob", "logit_diff"):
            np.testing.assert_allclose(
                scores[metric][:, place], want[metric][:, 0], atol=1e-4, err_msg=metric
            )


def test_donors_that_differ_are_not_shared(pair):
    """Catches prompts that share a token because the recipient's agree, though the donor's don't."""
    post, pre = pair
    batch = encoded([([3, 4, 5], [3], [4]), ([3, 4, 4], [4], [3]), ([3, 4, 3], [5], [3])])
    ids = batch.ids.copy()
    ids[1, 1], ids[2, 1] = 6, 7
    other = Encoded(**{**vars(batch), "ids": ids})
    variants = single(post.spec, "resid_post")
    one, two, order = in_trees(batch, other, 1e9)
    assert one.fed.shape == (1, 7)  # only the first token is shared
    scores = one.score(*sweep(post, one, Donor.of(pre, two, variants), variants))
    for place, prompt in enumerate(order):
        alone, source = (e.subset(np.array([prompt])) for e in (batch, other))
        want = alone.score(*sweep(post, alone, Donor.of(pre, source, variants), variants))
        np.testing.assert_allclose(scores["log_prob"][:, place], want["log_prob"][:, 0], atol=1e-4)


@settings(max_examples=8, deadline=None)
@given(PROMPTS)
def test_gradients_share_within_a_prompt_only(pair, prompts):
    """Catches prompts that share tokens where each one's gradient is wanted: a backward pass gives
    only their sum; and a right and a wrong answer that don't meet in the prompt's tokens."""
    model, batch = pair[0], encoded(prompts)
    mine = batch.by_prompt(99)
    assert len(mine.fed) == len(prompts)
    points, metrics = [(0, "resid_pre"), (1, "z")], ["log_prob", "logit_diff"]
    found, seen = several_gradients(model, mine, metrics, points, seen=[(1, "z")])
    products = gram(model, mine)
    assert mine.fed_prompt.tolist() == list(range(len(prompts)))
    for p in range(len(prompts)):
        alone = batch.subset(np.array([p]))
        want, also = several_gradients(model, alone, metrics, points, seen=[(1, "z")])
        for point in points:
            for a, b in zip(found, want, strict=True):
                # Summed over a prompt's tokens: what right and wrong share is one node here.
                torch.testing.assert_close(
                    a.activations[point][p].sum(0),
                    b.activations[point].sum((0, 1)),
                    atol=1e-4,
                    rtol=0,
                )
        n = alone.length[0]
        torch.testing.assert_close(
            mine.by_row(seen[1, "z"])[mine.row_prompt == p][0, :n],
            also[1, "z"][0, :n],
            atol=1e-4,
            rtol=0,
        )
        for cell, value in gram(model, alone).items():
            size = max(abs(products[cell][p, p]), 1)
            assert products[cell][p, p] == pytest.approx(value[0, 0], abs=1e-4 * size)
    if len(prompts) > 1:
        together, _ = packed(batch, groups=grouped(batch, nodes=99))
        if len(together[0].fed) < len(prompts):
            with pytest.raises(AssertionError, match="prompts share rows"):
                _ = together[0].fed_prompt


@settings(max_examples=8, deadline=None)
@given(PROMPTS)
def test_sums_over_prompts_and_reads_share_across(pair, prompts):
    """Catches a curvature or an activation that counts a shared token once where it belongs to
    several prompts, or reads another row's."""
    model, batch = pair[0], encoded(prompts)
    v = None
    totals = []
    plain = Encoded(**vars(batch))
    for nodes in (model.spec.nodes, 0):
        model.spec = type(model.spec)(**{**vars(model.spec), "nodes": nodes})
        with hessian(model, plain, [("attention", 1)]) as (product, held):
            n = sum(p.numel() for p in held)
            v = torch.randn(n, generator=torch.Generator().manual_seed(0)) if v is None else v
            totals.append(product(v))
        row, position = np.nonzero(np.arange(batch.ids.shape[1]) < batch.length[:, None])
        shuffled = np.random.default_rng(0).permutation(len(row))
        row, position = row[shuffled], position[shuffled]
        point = (1, "resid_post")
        totals.append(read(model, batch.ids, [point], row, position, memory=1e-3)[point])
        if nodes:
            full = nodes
    model.spec = type(model.spec)(**{**vars(model.spec), "nodes": full})
    scale = totals[2].abs().max().item()
    torch.testing.assert_close(totals[0], totals[2], atol=1e-4 * max(1, scale), rtol=0)
    torch.testing.assert_close(totals[1], totals[3], atol=1e-4, rtol=0)
