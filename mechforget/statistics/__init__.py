"""Intervals, tests, noise floor and selection: array functions that every measure shares.

Each prompt has a value (NaN if it has none) and a `cluster` id: prompts about one subject count as
one observation. The estimate is the mean over prompts; clusters are what is resampled, flipped,
split and counted. Most measures need only `summarise`.
"""

from mechforget.statistics.bootstrap import Interval, bounds, caveat, interval, percentiles
from mechforget.statistics.cka import unbiased_cka
from mechforget.statistics.clusters import ClusterSums, cluster_sums, mean, n_clusters
from mechforget.statistics.correlation import rank_correlation
from mechforget.statistics.fdr import q_values
from mechforget.statistics.floor import default_floor, floor_from_control
from mechforget.statistics.jackknife import jackknife
from mechforget.statistics.mantel import Correlation, mantel
from mechforget.statistics.permutation import enough_for, sign_flip, smallest_p
from mechforget.statistics.selection import crossfit, random_sets, rank, split_half
from mechforget.statistics.summary import summarise

__all__ = [
    "ClusterSums",
    "Correlation",
    "Interval",
    "bounds",
    "caveat",
    "cluster_sums",
    "crossfit",
    "default_floor",
    "enough_for",
    "floor_from_control",
    "interval",
    "jackknife",
    "mantel",
    "mean",
    "n_clusters",
    "percentiles",
    "q_values",
    "random_sets",
    "rank",
    "rank_correlation",
    "sign_flip",
    "smallest_p",
    "split_half",
    "summarise",
    "unbiased_cka",
]
