"""What every measure reports, on planted effects and on nothing."""

from functools import partial

import numpy as np
import pytest
from scipy import stats

from mechforget.statistics import interval, sign_flip, summarise

NAN = float("nan")
N = 24


def planted():
    """[metric, direction, layer, head, prompt]: noise of 0.02, whose mean over 24 prompts is 7
    standard errors below the floor of 0.03, and head (1, 2) at 60 % of a forgetting of about 4 nats
    in metric 0, a tenth of that in metric 1."""
    rng = np.random.default_rng(0)
    forgetting = 3 + rng.exponential(size=(2, 1, 1, 1, N))
    forgetting[1] /= 10
    effect = 0.02 * rng.normal(size=(2, 2, 3, 4, N))
    effect[:, :, 1, 2] += 0.6 * forgetting[:, :, 0, 0]
    return effect, forgetting


def test_finds_the_planted_head_and_only_it():
    """Catches shares by the wrong metric's forgetting, effects summed, axes mixed up."""
    effect, forgetting = planted()
    got = summarise(
        effect,
        np.arange(N),
        floor=0.03,
        fdr_axes=(-2, -1),
        forgetting=forgetting,
        forgetting_significant=True,
    )
    assert {x.shape for x in got.values()} == {(2, 2, 3, 4)}
    only = np.zeros((2, 2, 3, 4), bool)
    only[:, :, 1, 2] = True
    np.testing.assert_array_equal(got["significant"], only)
    np.testing.assert_allclose(got["effect"], effect.mean(-1), rtol=1e-12)
    np.testing.assert_allclose(
        got["share"], effect.mean(-1) / forgetting.mean(-1), rtol=1e-10, atol=1e-12
    )
    for name, end in (("effect", ("low", "high")), ("share", ("share_low", "share_high"))):
        low, high = got[end[0]], got[end[1]]
        assert ((low < got[name]) & (got[name] < high)).all()
    # the forgetting varies by 25 %, the share by 1 %: a joint resample knows, apart does not
    width = (got["share_high"] - got["share_low"])[only]
    assert (width[:2] < 0.02).all()


def test_parts_come_from_the_parts():
    """Catches a seed that does not arrive, p and q exchanged, families too wide or too narrow."""
    effect, _ = planted()
    got = summarise(effect, np.arange(N), floor=0.0, fdr_axes=(2, 3), seed=5)
    np.testing.assert_array_equal(got["low"], interval(effect, np.arange(N), seed=5).low)
    p = sign_flip(effect, np.arange(N))
    np.testing.assert_array_equal(got["p"], p)
    for i in range(2):
        for j in range(2):
            q = stats.false_discovery_control(p[i, j].ravel()).reshape(3, 4)
            np.testing.assert_allclose(got["q"][i, j], q, rtol=1e-12)


def test_family_sets_the_number_of_random_flips():
    """Catches 10 000 flips for families that need more: 600 heads, 24 000 flips."""
    got = summarise(np.ones((600, 30)), np.arange(30), floor=0, fdr_axes=(0,))
    np.testing.assert_array_equal(got["p"], 1 / 24_001)
    got = summarise(np.ones((600, 30)), np.arange(30), floor=0, fdr_axes=())
    np.testing.assert_array_equal(got["p"], 1 / 10_001)


def test_no_share_of_what_was_not_forgotten():
    """Catches division by an insignificant or negative forgetting, for each metric apart."""
    effect, forgetting = planted()
    significant = np.array([True, False]).reshape(2, 1, 1, 1)
    run = partial(summarise, effect, np.arange(N), floor=0.03, fdr_axes=(-2, -1))

    def shares(forgetting, significant):
        got = run(forgetting=forgetting, forgetting_significant=significant)
        return [np.isnan(got[k]).all((1, 2, 3)) for k in ("share", "share_low", "share_high")]

    assert np.all(shares(forgetting, significant) == np.array([False, True]))
    assert np.all(shares(forgetting, False))
    assert np.all(shares(-forgetting, True))
    got = run()
    assert np.isnan(got["share"]).all() and got["significant"].any()


def test_floor_and_q_are_both_needed():
    """Catches `or`, a signed comparison with the floor, one floor for all."""
    effect = np.empty((4, 16))
    effect[0] = 0.02 + 0.001 * np.arange(16)  # sure and above 0.01
    effect[1] = -effect[0]
    effect[2] = effect[0] / 10  # sure, below
    effect[3] = 5 * np.where(np.arange(16) % 2, 1, -0.9)  # large, unsure
    got = summarise(effect, np.arange(16), floor=0.01, fdr_axes=(0,))
    assert got["significant"].tolist() == [True, True, False, False]
    got = summarise(effect, np.arange(16), floor=[0.1, 0.01, 0.001, 0.1], fdr_axes=(0,))
    assert got["significant"].tolist() == [False, True, True, False]


def test_heads_that_were_not_run():
    """Catches NaN that spreads to others, or is called significant."""
    effect = np.ones((3, 12))
    effect[1] = NAN
    got = summarise(effect, np.arange(12), floor=0.01, fdr_axes=(0,))
    assert got["significant"].tolist() == [True, False, True]
    assert np.isnan([got[k][1] for k in ("effect", "low", "high", "p", "q")]).all()
    assert got["q"][0] == pytest.approx(2.0**-11)  # 2 tests, both at 2^-11


def test_nothing_is_found_in_noise():
    """Catches a missing correction: 100 studies of 40 heads without effect, two prompts to a
    cluster. Under the null BH finds anything at all in at most 5 % of them; 3 binomial errors."""
    rng = np.random.default_rng(1)
    cluster = np.repeat(np.arange(14), 2)
    noise = rng.normal(size=(100, 40, 14))[..., cluster] + rng.normal(size=(100, 40, 28))
    got = summarise(noise, cluster, floor=0.0, fdr_axes=(1,))
    assert np.mean(got["significant"].any(1)) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
    assert np.mean((got["p"] <= 0.05).any(1)) > 0.5  # the simulation can tell
