"""The noise floor, by hand."""

import numpy as np
import pytest

from mechforget.statistics import default_floor, floor_from_control

NAN = float("nan")


def test_percentile_over_heads():
    """Catches signed percentiles, the maximum, and axes mixed up: 0..100 gives 99."""
    effect = np.arange(101.0) * np.where(np.arange(101) % 2, 1, -1)
    assert floor_from_control(effect) == pytest.approx(99)
    both = np.stack([effect, 10 * effect])
    np.testing.assert_allclose(floor_from_control(both), [99, 990])
    np.testing.assert_allclose(floor_from_control(both, q=0.5), [50, 500])


def test_over_layer_and_head():
    """Catches a floor per layer where one per metric and direction was meant."""
    effect = np.random.default_rng(0).permutation(np.arange(-50.0, 51)[1:]).reshape(1, 1, 10, 10)
    floor = floor_from_control(effect, axes=(-2, -1))
    assert floor.shape == (1, 1)
    assert floor[0, 0] == pytest.approx(np.quantile([*range(50), *range(1, 51)], 0.99))


def test_missing_heads():
    """Catches NaN that spreads, and a warning (an error here) where all are missing."""
    effect = np.array([[1.0, NAN, -3.0], [NAN, NAN, NAN]])
    np.testing.assert_allclose(floor_from_control(effect, q=1), [3, NAN])


def test_without_a_control():
    """Catches 1 % of an insignificant change, nats applied to rates, a gain that lowers it."""
    assert default_floor("log_prob", 0.5, True) == 0.01
    assert default_floor("log_prob", 3.0, True) == pytest.approx(0.03)
    assert default_floor("logit_diff", -3.0, True) == pytest.approx(0.03)
    assert default_floor("log_prob", 3.0, False) == 0.01
    assert default_floor("correct", 3.0, True) == default_floor("preferred", 3.0, True) == 0.01
