"""Task similarity: how similar are two tasks to a checkpoint, and does that predict forgetting?"""

from typing import TYPE_CHECKING, Any

import numpy as np
from einops import pack, unpack

from mechforget.checkpoints import Pair
from mechforget.errors import MeasureError
from mechforget.measures.drift import stream
from mechforget.measures.explained import described, explained
from mechforget.measures.inputs import Inputs, check_settings, check_subject
from mechforget.measures.running import NAMES, running
from mechforget.statistics import Interval, bounds, jackknife, unbiased_cka
from mechforget.statistics.mantel import FEWEST_TASKS, mantel
from mechforget.sweeps.reads import prompt_tokens, read

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.models.protocol import Model, Point
    from mechforget.tasks import Encoded, Task

BOUND = ["value", "low", "high"]


@explained
def similarity(
    subject: "Pair | Inputs",
    task: "Task | None" = None,
    *,
    other: "Task | Encoded",
    pairs: np.ndarray | None = None,
    **how: Any,
) -> "xr.Dataset":
    """How similar two tasks are in pre's representations, before the second is trained on.

    Args: subject, task: a pair and the old task; other: the new one. Or Inputs, with `other`
        encoded and pairs: [pair, 2], the prompts of the two that are about one subject (`paired`
        finds them); None: there are none.
    Returns: along bound (value, low, high):
        `cka` (depth): unbiased CKA of the two tasks' activations at the prompts' last tokens, of
            prompts about one subject, each subject once; NaN, and said, where fewer than 4 are
            shared. `subjects`: how many.
        `cosine` (of): between the tasks' mean vectors, `embedding`: of the prompts' tokens as they
            enter the first layer (bag of words), `residual`: of the last layer's stream at the
            last tokens. Intervals resample both tasks' clusters.
    Raises: MeasureError: a prompt of one token; another subject; inf.
    Source: Kornblith et al. 2019, 1905.00414; mean vectors as tasks' embeddings: Vu et al. 2020,
        2005.00770. Blind: representations share a large mean (Ethayarajh 2019, 1909.00512), so
        cosines are near 1 of any two tasks: compare them with each other, not with 0.
    Examples:
        >>> every = np.tile(np.arange(same.encoded.n_prompts)[:, None], 2)
        >>> found = similarity(same, other=same.encoded, pairs=every).sel(bound="value")
        >>> [round(float(x), 6) for x in (found.cosine.min(), found.cka.max())]  # a task and itself
        [1.0, 1.0]
    """
    import xarray as xr

    from mechforget.tasks import Encoded, Task

    if not isinstance(subject, Inputs):
        check_settings(similarity, {"other": other, **how}, NAMES)
        check_subject("similarity", subject, (Pair,))
        if not (isinstance(task, Task) and isinstance(other, Task)):
            raise MeasureError("similarity(pair, task, other=task): two tasks are wanted")
        run = running(**how)
        inputs = Inputs.of(subject, task, loading=run.loading, memory=run.memory)
        other_encoded = other.encode(subject.pre.tokenizer())
        found = similarity(inputs, other=other_encoded, pairs=paired(task, other))
        return found.assign_attrs(run.attributes(inputs.pre))
    if how:
        raise MeasureError(f"similarity: {', '.join(how)}: these inputs are open already")
    if not isinstance(other, Encoded):
        raise MeasureError("similarity(inputs, other=...): want the other task encoded")
    model, both = subject.pre, (subject.encoded, other)
    at_end = [_last(model, encoded, subject.memory) for encoded in both]
    means = [_embedding(model, encoded, subject.memory) for encoded in both]
    pairs = np.empty((0, 2), np.int64) if pairs is None else np.asarray(pairs)
    number = np.arange(len(pairs))
    cka = [
        np.array(unbiased_cka(x[pairs[:, 0]], y[pairs[:, 1]], number))
        if len(pairs)
        else np.full(3, np.nan)
        for x, y in zip(*at_end, strict=True)
    ]
    clusters = [encoded.cluster for encoded in both]
    cosines = [mean_cosine(*means, *clusters), mean_cosine(*(x[-1] for x in at_end), *clusters)]
    said = "" if len(pairs) >= 4 else f"{len(pairs)} shared subjects: CKA cannot be told"
    found = xr.Dataset(
        {
            "cka": (("depth", "bound"), np.array(cka)),
            "cosine": (("of", "bound"), np.array(cosines)),
            "subjects": ((), len(pairs)),
        },
        coords={"depth": range(model.spec.layers + 1), "of": ["embedding", "residual"]}
        | {"bound": BOUND},
        attrs={"caveat": said},
    )
    return described(
        found,
        "1905.00414; 2005.00770",
        cka=("1", "unbiased CKA of the two tasks' activations"),
        cosine=("1", "cosine of the two tasks' mean vectors"),
        subjects=("1", "number of shared subjects"),
    )


def paired(task: "Task", other: "Task") -> np.ndarray:
    """[pair, 2]: the first prompt of each task about each subject that both have."""
    first: list[dict[str, int]] = []
    for rows in (task.rows, other.rows):
        found: dict[str, int] = {}
        subjects = rows["subject"].tolist() if "subject" in rows else []
        for i, subject in enumerate(subjects):
            if subject is not None:
                found.setdefault(subject, i)
        first.append(found)
    a, b = first
    return np.array([(a[s], b[s]) for s in a if s in b], np.int64).reshape(-1, 2)


def _last(model: "Model", encoded: "Encoded", memory: float) -> list[np.ndarray]:
    """The stream at prompts' last tokens, [prompt, d] by depth."""
    points: list[Point] = stream(model.spec)
    ids, at = prompt_tokens(encoded)
    found = read(model, ids, points, np.arange(len(at)), at, memory=memory)
    return [found[point].double().numpy() for point in points]


def _embedding(model: "Model", encoded: "Encoded", memory: float) -> np.ndarray:
    """Mean over a prompt's tokens of what enters the first layer, [prompt, d]."""
    ids, at = prompt_tokens(encoded)
    row, position = np.nonzero(np.arange(ids.shape[1]) <= at[:, None])
    point = (0, "resid_pre")
    found = read(model, ids, [point], row, position, memory=memory)[point].double().numpy()
    return np.add.reduceat(found, np.flatnonzero(position == 0)) / (at + 1)[:, None]


def mean_cosine(
    x: np.ndarray, y: np.ndarray, cluster_x: np.ndarray, cluster_y: np.ndarray
) -> np.ndarray:
    """Cosine of the mean rows of x [prompt, d] and y [prompt, d]: value, low, high, both resampled
    by cluster."""
    sums, counts = [], []
    for rows, cluster in ((x, cluster_x), (y, cluster_y)):
        member = np.equal.outer(np.unique(cluster), cluster).astype(np.float64)
        sums.append(member @ rows)
        counts.append(member.sum(1))

    def cosine(*drawn: np.ndarray) -> np.ndarray:
        """Of clusters drawn, [..., cluster] each: the inner products of sums are enough."""
        weights = [_counted(d, len(s)) for d, s in zip(drawn, sums, strict=True)]
        (a, b), (s, t) = weights, sums
        inner = np.einsum("...i,ij,...j->...", a, s @ t.T, b, optimize=True)
        size = [
            np.einsum("...i,ij,...j->...", w, m @ m.T, w, optimize=True)
            for w, m in zip(weights, sums, strict=True)
        ]
        return inner / np.sqrt(size[0] * size[1])

    return bounds(cosine, [len(s) for s in sums])


def _counted(drawn: np.ndarray, n: int) -> np.ndarray:
    """How often each of n clusters was drawn, [..., n]."""
    flat, shape = pack([drawn], "* draw")
    counts = np.stack([np.bincount(row, minlength=n) for row in flat]).astype(np.float64)
    return unpack(counts, shape, "* cluster")[0]


def gradient_cosine(
    aa: np.ndarray, ab: np.ndarray, bb: np.ndarray, cluster_a: np.ndarray, cluster_b: np.ndarray
) -> Interval:
    """Cosine of two tasks' true gradients: Ê[g_A·g_B] / √(Ê[g_A·g_A'] Ê[g_B·g_B']).

    The noise of single prompts would only shrink it: pairs of one cluster are left out of A with A
    and of B with B. Args: inner products of prompts' gradients: aa [a, a'], ab [a, b], bb [b, b'].
    cluster_a, cluster_b: ids [prompt]; every cluster counts as one.
    Returns: with a jackknife interval over both tasks' clusters. May pass 1 by noise; NaN where a
        task's gradients have no common direction (a denominator of 0 or less).
    """
    return _overlap(aa, ab, bb, cluster_a, cluster_b)


def fisher_overlap(
    aa: np.ndarray, ab: np.ndarray, bb: np.ndarray, cluster_a: np.ndarray, cluster_b: np.ndarray
) -> Interval:
    """tr(F_A F_B) / √(tr F_A² tr F_B²) of empirical Fisher matrices F = E g gᵀ: 0 to 1.

    tr(F_A F_B) is the mean over pairs of (g_A·g_B)²; of A with A, pairs of one cluster are left
    out. Arguments and interval as `gradient_cosine`. Source: Achille et al. 2019, 1902.03545 (with
        the diagonal of F only). Blind to signs: opposed gradients overlap fully.
    """
    aa, ab, bb = (np.square(np.asarray(k, np.float64)) for k in (aa, ab, bb))
    return _overlap(aa, ab, bb, cluster_a, cluster_b)


def _overlap(
    aa: np.ndarray, ab: np.ndarray, bb: np.ndarray, cluster_a: np.ndarray, cluster_b: np.ndarray
) -> Interval:
    """mean(ab) / √(mean(aa) mean(bb)) over pairs of different clusters."""
    a, b = (np.equal.outer(np.asarray(c), np.unique(c)) for c in (cluster_a, cluster_b))
    a, b = a / a.sum(0), b / b.sum(0)
    ab = a.T @ np.asarray(ab, np.float64) @ b  # [cluster, cluster] means
    n, m = ab.shape
    if min(n, m) < 2:
        raise MeasureError(f"{n} and {m} clusters: want at least 2 of each task")
    within = []
    for gram, member in ((aa, a), (bb, b)):
        block = member.T @ np.asarray(gram, np.float64) @ member
        np.fill_diagonal(block, 0)
        within.append((block.sum(), block.sum() - block.sum(0) - block.sum(1)))
    (sa, without_a), (sb, without_b) = within

    def value(top: Any, left: Any, right: Any) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            found = top / np.sqrt(left * right)
        return np.where((left > 0) & (right > 0), found, np.nan)

    sa_mean, sb_mean = sa / (n * (n - 1)), sb / (m * (m - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        without_a = without_a / ((n - 1) * (n - 2))
        without_b = without_b / ((m - 1) * (m - 2))
    return jackknife(
        value(ab.mean(), sa_mean, sb_mean),
        value((ab.sum() - ab.sum(1)) / ((n - 1) * m), without_a, sb_mean),
        value((ab.sum() - ab.sum(0)) / (n * (m - 1)), sa_mean, without_b),
    )


@explained
def against_forgetting(
    similar: "xr.DataArray", forgotten: "xr.DataArray", *, seed: int = 0
) -> "xr.Dataset":
    """Correlation of similarity and forgetting over ordered pairs of tasks.

    Args: similar: [task, other], complete off the diagonal. forgotten: [task, other], how much of
        `task` was lost by training on `other`; NaN where that wasn't measured.
    Returns: `r` (correlation: pearson, spearman; bound), tasks resampled; `p` (correlation),
        Mantel's.
        Attributes: `tasks`; `caveat`: below 6 tasks it cannot be told, and all is NaN.
    Raises: MeasureError: other dims or other tasks. Source: see `statistics.mantel`. Blind to what
        makes both: a task may be forgettable and alike to all others for one reason.
    Examples:
        >>> import xarray as xr
        >>> tasks = list("abcdef")
        >>> alike = xr.DataArray(np.arange(36.0).reshape(6, 6), {"task": tasks, "other": tasks})
        >>> against_forgetting(alike, 2 * alike).r.sel(bound="value").values.round(6).tolist()
        [1.0, 1.0]
    """
    import xarray as xr

    names = [str(x) for x in similar.task.values]
    for array in (similar, forgotten):
        if set(array.dims) != {"task", "other"}:
            raise MeasureError(f"dims {tuple(array.dims)}: want task and other")
        if [str(x) for x in array.task.values] != names or [
            str(x) for x in array.other.values
        ] != names:
            raise MeasureError(
                "similarity and forgetting are not of the same tasks in the same order"
            )
    x, y = (array.transpose("task", "other").values for array in (similar, forgotten))
    found = [mantel(x, y, ranks=ranks, seed=seed) for ranks in (False, True)]
    few = f"{len(names)} tasks, {FEWEST_TASKS} are needed: cannot be told"
    result = xr.Dataset(
        {
            "r": (("correlation", "bound"), np.array([f[:3] for f in found])),
            "p": ("correlation", np.array([f.p for f in found])),
        },
        coords={"correlation": ["pearson", "spearman"], "bound": BOUND},
        attrs={
            "tasks": len(names),
            "caveat": few if len(names) < FEWEST_TASKS else "",
            "seed": seed,
        },
    )
    return described(
        result,
        "Mantel 1967",
        r=("1", "correlation of similarity and forgetting over ordered pairs of tasks"),
        p=("1", "p of Mantel's test"),
    )
