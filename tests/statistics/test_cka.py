"""Unbiased CKA against brute force over all tuples, the population's value, and its traps."""

from itertools import permutations

import numpy as np
import pytest

from mechforget.errors import MeasureError
from mechforget.statistics import unbiased_cka


def brute(x, y, cluster):
    """CKA by loops over all ordered tuples of different clusters, and of rows within them."""
    groups = [np.flatnonzero(cluster == c) for c in np.unique(cluster)]

    def hsic(k, m):
        def mean(gram, a, b):
            return gram[np.ix_(a, b)].mean()

        two = [mean(k * m, a, b) for a, b in permutations(groups, 2)]
        three = [
            np.mean([k[i, b].mean() * m[i, c].mean() for i in a])
            for a, b, c in permutations(groups, 3)
        ]
        four = [mean(k, a, b) * mean(m, c, d) for a, b, c, d in permutations(groups, 4)]
        return np.mean(two) + np.mean(four) - 2 * np.mean(three)

    k, m = x @ x.T, y @ y.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def biased(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)


@pytest.mark.parametrize("sizes", [[1] * 9, [1, 2, 1, 3, 1, 1, 2, 1, 1]])
def test_estimate_and_interval_equal_brute_force(sizes):
    """Catches a wrong term, count or sign of any of the sums, the diagonal of a cluster left in,
    and a closed form of "without one cluster" that isn't it."""
    rng = np.random.default_rng(0)
    cluster = rng.permutation(np.repeat(np.arange(9), sizes))
    x = rng.normal(size=(len(cluster), 5))
    y = x[:, :3] + rng.normal(size=(len(cluster), 3)) + 2
    found = unbiased_cka(x, y, cluster)
    np.testing.assert_allclose(found.estimate, brute(x, y, cluster), atol=1e-12)
    each = [brute(*(a[cluster != c] for a in (x, y, cluster))) for c in range(9)]
    half = 2.306004135 * np.sqrt(8 / 9 * ((each - np.mean(each)) ** 2).sum())  # t of 8 degrees
    low, high = np.clip(found.estimate + np.array([-half, half]), -1, 1)
    np.testing.assert_allclose([found.low, found.high], [low, high], atol=1e-8)


def test_unrelated_rows_fewer_than_dimensions():
    """Catches the biased estimator, which says 0.9 of nothing at all."""
    rng = np.random.default_rng(1)
    pairs = [rng.normal(size=(2, 32, 512)) for _ in range(20)]
    assert min(biased(*pair) for pair in pairs) > 0.9
    values = [unbiased_cka(*pair, range(32)).estimate for pair in pairs]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(20) and np.std(values) < 0.1


def test_the_bootstrap_would_say_0_9():
    """Shows why the interval isn't a bootstrap's: drawn twice, a row is its own neighbour."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 40, 512))
    drawn = rng.integers(0, 40, 40)
    assert unbiased_cka(x[drawn], y[drawn], range(40)).estimate > 0.8
    found = unbiased_cka(x, y, range(40))
    assert found.low < 0 < found.high < 0.5


@pytest.mark.parametrize(
    ("n", "d", "mix"), [(12, 4, 0.5), (20, 4, 2.0), (20, 64, 0.0), (40, 4, 8.0)]
)
def test_intervals_cover_the_populations_value(n, d, mix):
    """Catches intervals too short or shifted. y = mix x + noise, whose CKA is known; of 400 draws
    95 % are covered to 4 standard errors, or more: the jackknife errs on the wide side."""
    scale = np.linspace(1.5, 0.5, d)
    cxx, cyy, cxy = scale**2, mix**2 * scale**2 + 1, mix * scale**2
    true = (cxy**2).sum() / np.sqrt((cxx**2).sum() * (cyy**2).sum())
    hits, rng = 0, np.random.default_rng(3)
    for _ in range(400):
        x = rng.normal(size=(n, d)) * scale
        found = unbiased_cka(x, mix * x + rng.normal(size=(n, d)), range(n))
        hits += found.low <= true <= found.high
    assert hits / 400 > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 400)
    assert mix == 0 or hits < 400


def test_copies_of_prompts_change_nothing():
    """Catches rows counted as observations: copies would shrink the interval, and rows of one
    cluster that are each other's neighbours would raise the estimate."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 24, 100))
    once = unbiased_cka(x, y, range(24))
    again = np.tile(np.arange(24), 3)
    np.testing.assert_allclose(unbiased_cka(x[again], y[again], again), once, atol=1e-10)
    naive = unbiased_cka(x[again], y[again], range(72))
    assert naive.estimate > once.estimate + 0.3
    assert naive.high - naive.low < 0.7 * (once.high - once.low)
    phrased = (
        x[again] + 0.1 * rng.normal(size=(72, 100)),
        y[again] + 0.1 * rng.normal(size=(72, 100)),
    )
    assert abs(unbiased_cka(*phrased, again).estimate - once.estimate) < 0.05


def test_invariances_and_range():
    """Catches a missing centring, also of a mean a million times the differences; scale; rotation."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(20, 6))
    y = x @ rng.normal(size=(6, 6)) + 0.3 * rng.normal(size=(20, 6))
    cluster = np.repeat(np.arange(10), [1, 2, 3, 2, 2, 4, 1, 2, 2, 1])
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    want = unbiased_cka(x, y, cluster).estimate
    moved = unbiased_cka(1e6 + x @ rotation, -3e-3 * y, cluster).estimate
    np.testing.assert_allclose(moved, want, atol=1e-8)
    assert unbiased_cka(x, x, range(20)) == (1, 1, 1)
    assert unbiased_cka(y, x, cluster).estimate == pytest.approx(want)


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_has_no_value_and_what_is_refused():
    """Catches a number made of rounding, of too few clusters, of rows that don't belong together."""
    x = np.random.default_rng(6).normal(size=(12, 3))
    assert np.isnan(unbiased_cka(np.full((12, 3), 0.1), x, range(12))).all()
    assert np.isnan(unbiased_cka(x, x, np.arange(12) % 3)).all()
    seven = unbiased_cka(x, x, np.arange(12) % 7)
    assert seven.estimate == 1 and np.isnan(seven.low)
    assert unbiased_cka(x, 2 * x, np.arange(12) % 4).estimate == pytest.approx(1)
    with pytest.raises(MeasureError, match="12 and 11 rows of 12 cluster ids"):
        unbiased_cka(x, x[1:], range(12))
    x[3, 1] = np.inf
    with pytest.raises(MeasureError, match="inf or NaN: use float32 or bfloat16"):
        unbiased_cka(x, x, range(12))
