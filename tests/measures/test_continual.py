"""Forgetting and transfer of a sequence, against numbers reckoned by hand and a plain loop."""

import numpy as np
import pytest
import xarray as xr

from mechforget.errors import MeasureError
from mechforget.measures import continual


def matrix(values, trained, cluster=None):
    """R per prompt, [checkpoint][task][prompt], as `training.train` returns it."""
    values = np.asarray(values, float)
    n = values.shape[-1]
    cluster = np.tile(np.arange(n), (len(trained), 1)) if cluster is None else cluster
    return xr.Dataset(
        {"log_prob_prompt": (("checkpoint", "task", "prompt"), values, {"units": "nats"})},
        coords={
            "task": [f"task {i}" for i in range(len(trained))],
            "trained": ("task", list(trained)),
            "cluster": (("task", "prompt"), cluster),
        },
    )


def constant(table, n=10):
    return np.repeat(np.asarray(table, float)[..., None], n, -1)


def test_every_number_is_the_one_reckoned_by_hand():
    """Catches a maximum from before the task was trained, a baseline that is the wrong checkpoint,
    the last task counted in backward transfer, the first in forward, and an untrained one in any."""
    #        old   first  second
    table = [[-1, -5, -6], [-2, -1, -4], [-0.5, -3, -1], [-4, -2, -2]]
    found = continual(matrix(constant(table), (0, 1, 2))).sel(bound="value")
    np.testing.assert_allclose(found.forgetting, [3.5, 1, 1])
    np.testing.assert_allclose(found.lost, [3, 1, 1])
    np.testing.assert_allclose(found.backward, -2 - -1)
    np.testing.assert_allclose(found.forward, -4 - -6)
    np.testing.assert_allclose(found.average, -2)
    assert found.forgetting.attrs["units"] == "nats"
    alone = continual(matrix(constant([[-1], [-2]]), (1,)))
    assert np.isnan(alone.backward).all() and np.isnan(alone.forward).all()
    assert (alone.average == -2).all()  # no spread: the interval is the value
    assert np.isnan(continual(matrix(constant(table, 7), (0, 1, 2))).forgetting[:, 1:]).all()
    with pytest.raises(MeasureError, match="metric 'loss' is unknown: want log_prob or correct"):
        continual(matrix(constant(table), (0, 1, 2)), metric="loss")


def test_intervals_resample_clusters_and_take_the_maximum_anew():
    """Catches prompts drawn one by one, padding drawn, and a maximum fixed at its own checkpoint."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 1, 42)) - 1
    cluster = np.r_[np.repeat(np.arange(20), 2), -1, -1][None]
    values[..., 40:] = 50  # beyond the task's prompts
    found = continual(matrix(values, (0,), cluster))
    by_cluster = values[:, 0, :40].reshape(3, 20, 2).mean(-1)
    r = by_cluster.mean(-1)
    np.testing.assert_allclose(found.forgetting[0, 0], max(r) - r[-1])
    draws = []
    for _ in range(2000):
        drawn = by_cluster[:, rng.integers(0, 20, 20)].mean(-1)
        draws.append((max(drawn) - drawn[-1], drawn[0] - drawn[-1]))
    for name, plain in zip(("forgetting", "lost"), np.array(draws).T, strict=True):
        low, high = found[name][0, 1:].values
        assert low < found[name][0, 0] < high
        want = np.quantile(plain, 0.975) - np.quantile(plain, 0.025)
        assert 0.7 < (high - low) / want < 1.3, name
