"""Erased or misread: is the answer still in the residual stream, where nobody reads it any more?"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.errors import MeasureError
from mechforget.measures.drift import stream
from mechforget.measures.explained import described
from mechforget.measures.inputs import Inputs, measure
from mechforget.models.protocol import Model
from mechforget.shapes import Array, Float, Int, Shaped
from mechforget.statistics import caveat, interval
from mechforget.statistics.ridge import ridge
from mechforget.statistics.rotation import rotation
from mechforget.sweeps.reads import clusters, prompt_tokens, read, unembedding_rows
from mechforget.sweeps.run import REQUEST

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.models.protocol import Point
    from mechforget.tasks import Encoded

PROBES = ("pre", "as_is", "aligned", "refit", "shuffled")
FOLDS, SHUFFLES = 10, 5
CLUSTERS, CANDIDATES = 4, 2  # at least


@measure
def readout(inputs: Inputs, *, seed: int = 0) -> "xr.Dataset":
    """How well a linear map finds the right answer in the stream at a prompt's last token.

    A ridge map from the residual to pre's unembedding row of the answer's first token is fitted on
    some clusters and read on others. The task's first answer tokens are ordered by cosine with the
    row that it gives, from their mean.
    Returns: `rank` (probe, depth, prompt), the right answer's place, 1 the best, ties in the
        middle; `score`, 1 / rank: its mean is the mean reciprocal rank. Depth as in `drift`.
        Probes: `pre`: fitted and read on pre; `as_is`: fitted on pre, read on post; `aligned`: the
        same, post's stream turned into pre's by a rotation fitted on neutral text; `refit`: fitted
        and read on post; `shuffled`: refit to answers exchanged between clusters, the chance level
        (mean of 5). `verdict` (depth), see there.
    Attributes: `candidates`, `tokens` of neutral text, `caveat`. `directions` (depth): that the
        rotation is fitted in, a fifth of the tokens.
    Raises: MeasureError: fewer than 4 clusters or 2 candidates; no neutral text; inf.
    Source: Alain & Bengio 2016, 1610.01644 (probes); Hernandez et al. 2024, 2308.09124 (relations
        are near linear); Hewitt & Liang 2019, 1909.03368 (controls). Blind to what isn't linear:
        a low refit may be an answer that is there in another form, and a high one needn't be used.
    Examples:
        >>> rank = readout(same)["rank"]
        >>> bool((rank.sel(probe="as_is") == rank.sel(probe="pre")).all())  # nothing was changed
        True
    """
    import xarray as xr

    encoded, spec = inputs.encoded, inputs.post.spec
    if inputs.neutral is None:
        raise MeasureError(
            "there is no text to align the checkpoints on: make the inputs with Inputs.of, which "
            "adds neutral text"
        )
    ids, at = prompt_tokens(encoded)
    if lack := lacks_for_probes(encoded):
        raise MeasureError(lack)
    candidates, target = np.unique(_first_answers(encoded), return_inverse=True)
    cluster = clusters(encoded)
    n = len(np.unique(cluster))
    codes = coded(unembedding_rows(inputs.pre, candidates).numpy())
    at_end = np.arange(len(at)), at
    text = inputs.neutral
    of_text = np.nonzero(np.arange(text.ids.shape[1]) < text.length[:, None])
    of_text = tuple(x[of_text[1] > 0] for x in of_text)  # never a first token
    models = inputs.pre, inputs.post
    rank, directions = [], []
    pairs = zip(
        *(_by_depth(m, ids, at_end, inputs.memory) for m in models),
        *(_by_depth(m, text.ids, of_text, inputs.memory) for m in models),
        strict=True,
    )
    for pre, post, pre_text, post_text in pairs:
        turn = rotation(post_text, pre_text)
        directions.append(turn.k)
        rank.append(probes(pre, post, turn(post), target, codes, cluster, seed=seed))
    ranks, scores = (np.stack([r[i] for r in rank], 1) for i in (0, 1))
    dims = ("probe", "depth", "prompt")
    found = xr.Dataset(
        {
            "rank": (dims, ranks),
            "score": (dims, scores),
            "directions": ("depth", np.array(directions)),
        },
        coords={
            "probe": list(PROBES),
            "depth": range(spec.layers + 1),
            "prompt": range(encoded.n_prompts),
            "cluster": ("prompt", cluster),
        },
        attrs={
            "candidates": len(candidates),
            "tokens": len(of_text[0]),
            "seed": seed,
            "n": n,
            "caveat": caveat(n),
        },
    )
    return described(
        found.assign(verdict=verdict(found)),
        "1610.01644",
        rank=("place", "rank of the right answer among the candidates"),
        score=("1", "reciprocal rank of the right answer"),
        directions=("directions", "dimensions in which the rotation is fitted"),
    )


def lacks_for_probes(encoded: "Encoded") -> str:
    """What a task lacks for probes, in a line; nothing if it lacks nothing."""
    n, answers = len(np.unique(clusters(encoded))), len(np.unique(_first_answers(encoded)))
    if n >= CLUSTERS and answers >= CANDIDATES:
        return ""
    return (
        f"{n} distinct prompts and {answers} different first tokens of answers: want at least "
        f"{CLUSTERS} and {CANDIDATES} to probe for"
    )


def _first_answers(encoded: "Encoded") -> np.ndarray:
    """Token ids, [prompt]."""
    return encoded.read_target[np.searchsorted(encoded.read_prompt, np.arange(encoded.n_prompts))]


def _by_depth(
    model: Model, ids: np.ndarray, tokens: tuple[np.ndarray, ...], memory: float
) -> Iterator[np.ndarray]:
    """The stream at these tokens, [token, d_model] by depth; as many depths in a forward pass as
    fit a request."""
    points: list[Point] = stream(model.spec)
    step = max(1, int(REQUEST // (4 * model.spec.d_model * len(tokens[0]))))
    for some in (points[i : i + step] for i in range(0, len(points), step)):
        found = read(model, ids, some, *tokens, memory=memory)
        for point in some:
            yield found.pop(point).double().numpy()


def coded(rows: Float[Array, "candidate d"]) -> Float[Array, "candidate span"]:
    """Candidates' unembedding rows from their mean, in a basis of their span."""
    apart = np.asarray(rows, np.float64)
    apart = apart - apart.mean(0)
    return apart @ np.linalg.qr(apart.T)[0]


def probes(
    pre: Float[Array, "prompt d"],
    post: Float[Array, "prompt d"],
    aligned: Float[Array, "prompt d"],
    target: Int[Array, " prompt"],
    codes: Float[Array, "candidate span"],
    cluster: Shaped[Array, " prompt"],
    *,
    seed: int = 0,
) -> tuple[Float[Array, "probe prompt"], Float[Array, "probe prompt"]]:
    """rank and 1 / rank of the right answer, by each of `PROBES`.

    Args: aligned: post in pre's basis. target: the right candidate. codes: `coded` candidates.
        cluster: ids; what is held out together.
    """
    rng = np.random.default_rng(seed)
    _, index = np.unique(cluster, return_inverse=True)
    n = int(index.max()) + 1
    fold = (rng.permutation(n) % FOLDS)[index]
    ranks = [
        *held_out(pre, (pre, post, aligned), target, codes, index, fold),
        *held_out(post, (post,), target, codes, index, fold),
    ]
    shuffled = []
    for _ in range(SHUFFLES):
        other = _exchanged(target, index, rng.permutation(n))
        shuffled += held_out(post, (post,), other, codes, index, fold)
    rank = np.stack([*ranks, np.mean(shuffled, 0)])
    return rank, np.stack([*(1 / r for r in ranks), np.mean([1 / r for r in shuffled], 0)])


def held_out(
    fit: Float[Array, "prompt d"],
    read_on: Sequence[Float[Array, "prompt d"]],
    target: Int[Array, " prompt"],
    codes: Float[Array, "candidate span"],
    cluster: Shaped[Array, " prompt"],
    fold: Int[Array, " prompt"],
) -> list[Float[Array, " prompt"]]:
    """The right answer's rank on each of `read_on`, by maps fitted on `fit` without the
    prompt's fold."""
    ranks = [np.empty(len(target)) for _ in read_on]
    unit = codes / np.linalg.norm(codes, axis=1, keepdims=True).clip(1e-300)
    for f in np.unique(fold):
        here, there = fold == f, fold != f
        found = ridge(fit[there], codes[target[there]], cluster[there])
        for rank, x in zip(ranks, read_on, strict=True):
            near = found(x[here]) @ unit.T
            right = np.take_along_axis(near, target[here][:, None], 1)
            ties = abs(near - right) <= 1e-9 * abs(near).max(1, keepdims=True)
            rank[here] = 1 + ((near > right) & ~ties).sum(1) + (ties.sum(1) - 1) / 2
    return ranks


def _exchanged(target: np.ndarray, cluster: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Each cluster's answers go to another: [prompt]."""
    groups = [np.flatnonzero(cluster == c) for c in range(len(order))]
    other = np.empty_like(target)
    for mine, theirs in zip(groups, order, strict=True):
        other[mine] = np.resize(target[groups[theirs]], len(mine))
    return other


def verdict(found: "xr.Dataset") -> "xr.DataArray":
    """A word for each depth, from paired 95 % intervals of the mean score, clusters resampled:

    `unreadable`: pre's own probe isn't above chance; `kept`: as_is isn't below pre; else, by refit:
    `misread`: above chance and not below pre, so the answer is there in another place or form;
    `erased`: below pre and not above chance; `partly erased`: below pre and above chance;
    `cannot be told`: neither, or fewer than 8 clusters.
    Blind: of many depths one word in twenty is chance; few prompts can't tell a bit less from kept.
    """
    import xarray as xr

    cluster = found.cluster.values

    def above(one: str, other: str) -> np.ndarray:
        apart = found.score.sel(probe=one).values - found.score.sel(probe=other).values
        low = interval(apart, cluster).low
        return np.where(np.isnan(low), np.nan, low > 0)

    there, lost = above("pre", "shuffled"), above("pre", "as_is")
    gone, left = above("pre", "refit"), above("refit", "shuffled")
    words: list[Any] = [
        (np.isnan(there), "cannot be told"),
        (there == 0, "unreadable"),
        (lost == 0, "kept"),
        ((left > 0) & (gone == 0), "misread"),
        ((left == 0) & (gone > 0), "erased"),
        ((left > 0) & (gone > 0), "partly erased"),
    ]
    said = np.select(*map(list, zip(*words, strict=True)), default="cannot be told")
    return xr.DataArray(said, dims="depth", coords={"depth": found.depth})
