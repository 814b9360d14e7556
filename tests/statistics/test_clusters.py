"""Sums per cluster, by hand."""

import numpy as np
import pytest

from mechforget.errors import MeasureError
from mechforget.statistics import cluster_sums, mean, n_clusters
from mechforget.statistics.clusters import same_clusters

NAN = float("nan")


def test_sums_by_hand():
    """Catches clusters taken in order of appearance, NaN counted as 0 in the weight."""
    values = [[1.0, 2.0, 4.0, NAN, 8.0], [NAN, NAN, 1.0, 1.0, 1.0]]
    sums = cluster_sums(values, [7, 3, 7, 3, 5])  # sorted ids: 3, 5, 7
    np.testing.assert_array_equal(sums.total, [[2, 8, 5], [1, 1, 1]])
    np.testing.assert_array_equal(sums.weight, [[1, 1, 2], [1, 1, 1]])
    assert sums.present.all()


def test_absent_cluster_is_not_counted():
    """Catches n counting clusters whose every prompt is NaN."""
    values = [[1.0, NAN, NAN], [1.0, 2.0, NAN]]
    np.testing.assert_array_equal(n_clusters(values, [0, 1, 1]), [1, 2])
    np.testing.assert_array_equal(
        cluster_sums(values, [0, 1, 1]).present, [[True, False], [True, True]]
    )


def test_over_drops_a_prompt_from_both_sides():
    """Catches a numerator that keeps prompts which the denominator lacks, and the reverse."""
    sums = cluster_sums([[1.0, 2.0, NAN, 4.0]], [0, 0, 1, 1], over=[10.0, NAN, 30.0, 40.0])
    np.testing.assert_array_equal(sums.total, [[1, 4]])
    np.testing.assert_array_equal(sums.weight, [[10, 40]])


def test_over_broadcasts_against_leading_axes():
    """Catches one metric's forgetting used for another's."""
    values = np.ones((2, 3, 4))
    over = np.array([[[1.0, 2, 3, 4]], [[10.0, 20, 30, 40]]])
    sums = cluster_sums(values, [0, 0, 1, 1], over)
    np.testing.assert_array_equal(sums.weight[0], [[3, 7]] * 3)
    np.testing.assert_array_equal(sums.weight[1], [[30, 70]] * 3)


def test_cluster_ids_may_be_names():
    """Catches code that takes ids for indices."""
    sums = cluster_sums([1.0, 2.0, 3.0], ["peru", "chad", "peru"])
    np.testing.assert_array_equal(sums.total, [2, 4])


def test_mean_ignores_missing_prompts():
    """Catches a mean over all prompts, and a warning (an error here) where none has a value."""
    result = mean([[1.0, NAN, 3.0], [NAN, NAN, NAN]])
    np.testing.assert_array_equal(result, [2.0, NAN])


def test_same_clusters_partitions_the_rows():
    """Catches a row that is lost or resampled with another's clusters."""
    present = np.array([[1, 1, 0], [1, 1, 1], [1, 1, 0], [0, 0, 0]], bool)
    found = {tuple(clusters): tuple(rows) for rows, clusters in same_clusters(present)}
    assert found == {(): (3,), (0, 1): (0, 2), (0, 1, 2): (1,)}


def test_no_heads():
    """Catches a crash on a site without heads."""
    assert cluster_sums(np.ones((0, 5)), np.arange(5)).total.shape == (0, 5)


def test_refusals():
    """Catches values of one task paired with another's clusters, and -inf that becomes NaN."""
    with pytest.raises(MeasureError, match="one id per prompt, prompts on the last axis"):
        cluster_sums(np.ones((5, 4)), np.arange(5))
    with pytest.raises(MeasureError, match="no prompts, so no mean: give at least one"):
        cluster_sums(np.ones((3, 0)), [])
    with pytest.raises(MeasureError, match="infinite values have no mean: give NaN"):
        cluster_sums([1.0, -np.inf], [0, 1])
    with pytest.raises(MeasureError, match="infinite"):
        cluster_sums([1.0, 1.0], [0, 1], over=[1.0, np.inf])
