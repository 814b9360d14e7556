"""Chooses heads on other prompts than they are judged on, and draws random heads for comparison."""

from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from mechforget.errors import MeasureError
from mechforget.shapes import Array, ArrayLike, Bool, Float, Int, Num, Shaped
from mechforget.statistics.clusters import mean


def split_half(
    cluster: Shaped[ArrayLike, " prompt"], seed: int = 0
) -> tuple[Bool[Array, " prompt"], Bool[Array, " prompt"]]:
    """Two masks over prompts: a random half of the clusters (the larger half if their number is
    odd), and the rest.

    Raises: MeasureError: fewer than two clusters.
    """
    cluster = np.asarray(cluster)
    ids = np.unique(cluster)
    if len(ids) < 2:
        raise MeasureError(
            f"{len(ids)} distinct prompts cannot be split in two: give more prompts, or no sets"
        )
    first = np.random.default_rng(seed).permutation(ids)[: (len(ids) + 1) // 2]
    a = np.isin(cluster, first)
    return a, ~a


def rank(
    effect: Num[ArrayLike, "head prompt"], prompts: Bool[Array, " prompt"]
) -> Int[Array, " head"]:
    """Heads by their mean effect on these prompts, the largest first.

    Heads without a value come last. Signed: a head that makes it worse is no candidate.
    """
    score = mean(np.asarray(effect, np.float64)[:, prompts])
    return np.argsort(-score, kind="stable")  # which puts NaN last


def crossfit(
    effect: Num[ArrayLike, "head prompt"], cluster: Shaped[ArrayLike, " prompt"], seed: int = 0
) -> tuple[Float[Array, " prompt"], tuple[int, int]]:
    """The top head's effect without the winner's curse: the head is chosen on one half of the
    clusters, and its effect is read on the other half.

    Returns: the effect on each prompt, of the head that the other half of the clusters ranks first.
        Its mean is the cross-fitted effect, and `interval` gives its interval. Then the two heads:
        the one whose effect is read on the first half, and the one read on the second half.
    """
    effect = np.asarray(effect, np.float64)
    a, b = split_half(cluster, seed)
    of_a, of_b = int(rank(effect, b)[0]), int(rank(effect, a)[0])
    return np.where(a, effect[of_a], effect[of_b]), (of_a, of_b)


def random_sets(
    layers_of_set: Sequence[int],
    n_heads: int,
    *,
    n_draws: int = 20,
    seed: int = 0,
    exclude: Collection[tuple[int, int]] = (),
) -> tuple[Int[Array, "{n_draws} k 2"], Int[Array, " {n_draws}"]]:
    """Random sets of heads, with as many heads in each layer as the chosen set.

    Args: layers_of_set: the layer of each chosen head. n_heads: heads in a layer. exclude: (layer,
        head) pairs that are never drawn, e.g. the chosen ones.
    Returns: sets of (layer, head), ordered by layer, then head; and the seed of each draw: draw i
        uses `np.random.default_rng(seeds[i])`, for the layers in rising order.
    Raises: MeasureError: a layer has fewer heads left than are to be drawn.
    """
    seeds = np.random.SeedSequence(seed).generate_state(n_draws).astype(np.int64)
    wanted = sorted(Counter(map(int, layers_of_set)).items())
    free = {
        layer: [head for head in range(n_heads) if (layer, head) not in exclude]
        for layer, _ in wanted
    }
    for layer, count in wanted:
        if count > len(free[layer]):
            raise MeasureError(
                f"{count} random heads wanted in layer {layer}, {len(free[layer])} left of "
                f"{n_heads}: exclude fewer, or choose a smaller set"
            )
    sets = np.empty((n_draws, len(layers_of_set), 2), np.int64)
    for draw, one in zip(sets, seeds, strict=True):
        rng = np.random.default_rng(one)
        heads = [np.sort(rng.choice(free[x], n, replace=False)) for x, n in wanted]
        draw[:, 0] = np.sort(layers_of_set)
        draw[:, 1] = np.concatenate(heads)
    return sets, seeds
