"""What a sequence of trainings cost: forgetting by task, transfer, average, from R[t, i]."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.errors import MeasureError
from mechforget.measures.explained import UNITS, described, explained
from mechforget.statistics import bounds, cluster_sums

if TYPE_CHECKING:
    import xarray as xr


@explained
def continual(scores: "xr.Dataset", *, metric: str = "log_prob", seed: int = 0) -> "xr.Dataset":
    """From the score matrix that `training.train` returns; T is its last checkpoint.

    With t_i the first checkpoint trained on task i (0, the base, if none was):
    Returns: along `bound` = value, low, high (95 % BCa over each task's clusters), in R's unit:
        `forgetting` (task): max over t >= t_i of R[t, i] - R[T, i], the maximum retaken in every
            resample; never negative, so its interval says little about zero;
        `lost` (task): R[t_i, i] - R[T, i]; may be negative, which is learning;
        `backward`: mean of R[T, i] - R[t_i, i] over trained tasks but the last;
        `forward`: mean of R[t_i - 1, i] - R[0, i] over trained tasks but the first;
        `average`: mean of R[T, i] over trained tasks. NaN where there is no such task.
    Raises: MeasureError: no such metric.
    Source: Lopez-Paz & Ranzato 2017, 1706.08840, with θ₀ in place of a random start; Chaudhry et
        al. 2018, 1801.10112. Blind to prompts that tasks share: each task is resampled by itself.
    Examples:
        >>> import xarray as xr
        >>> R = np.array([[-9, -9], [-1, -5], [-3, -1.0]])  # at the base, after task a, after b
        >>> dims = ("checkpoint", "task", "prompt")
        >>> scores = xr.Dataset({"log_prob_prompt": (dims, np.stack([R, R], -1))})
        >>> cluster = ("task", "prompt"), [[0, 1], [0, 1]]
        >>> scores = scores.assign_coords(trained=("task", [1, 2]), cluster=cluster)
        >>> found = continual(scores.assign_coords(task=["a", "b"])).sel(bound="value")
        >>> found.forgetting.values.tolist(), found.forward.item(), found.average.item()
        ([2.0, 0.0], 4.0, -2.0)
    """
    import xarray as xr

    name = f"{metric}_prompt"
    if name not in scores:
        raise MeasureError(
            f"metric {metric!r} is unknown: want log_prob or correct, which the score matrix has"
        )
    sums = []
    for i in range(scores.sizes["task"]):
        here = scores[name].isel(task=i).values, scores.cluster.isel(task=i).values
        real = here[1] >= 0
        sums.append(cluster_sums(here[0][:, real], here[1][real]))
    first = scores.trained.values.tolist()
    trained = sorted((i for i, t in enumerate(first) if t), key=first.__getitem__)

    def over(tasks: list[int], statistic: Callable[[np.ndarray, int], Any]) -> np.ndarray:
        """Value, low, high of a statistic of R [checkpoint, ...] and t_i, averaged over tasks."""
        if not tasks:
            return np.full(3, np.nan)

        def mean(*drawn: np.ndarray) -> Any:  # each task's clusters, [..., cluster]
            found = []
            for i, d in zip(tasks, drawn, strict=True):
                r = sums[i].total[:, d].sum(-1) / sums[i].weight[:, d].sum(-1)
                found.append(statistic(r, first[i]))
            return sum(found) / len(found)

        return bounds(mean, [sums[i].total.shape[-1] for i in tasks], seed=seed)

    each = range(len(sums))
    per_task = {
        "forgetting": [over([i], lambda r, t: r[t:].max(0) - r[-1]) for i in each],
        "lost": [over([i], lambda r, t: r[t] - r[-1]) for i in each],
    }
    over_tasks = {
        "backward": over(trained[:-1], lambda r, t: r[-1] - r[t]),
        "forward": over(trained[1:], lambda r, t: r[t - 1] - r[0]),
        "average": over(trained, lambda r, t: r[-1]),
    }
    found = xr.Dataset(
        {k: (("task", "bound"), np.array(v)) for k, v in per_task.items()}
        | {k: (("bound",), v) for k, v in over_tasks.items()},
        coords={"task": scores.task.values, "bound": ["value", "low", "high"]},
        attrs={"metric": metric, "seed": seed},
    )
    unit = UNITS[metric]
    return described(
        found,
        "1706.08840",
        forgetting=(unit, f"best {metric} since the task was learned minus the last"),
        lost=(unit, f"{metric} when the task was learned minus the last"),
        backward=(unit, f"backward transfer of {metric}"),
        forward=(unit, f"forward transfer of {metric}"),
        average=(unit, f"average {metric} at the end"),
    )
