"""Attention change: how far each head's pattern moved between two checkpoints."""

from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from mechforget.errors import MeasureError
from mechforget.measures.explained import described
from mechforget.measures.forgetting import AT
from mechforget.measures.inputs import Inputs, measure
from mechforget.models.protocol import Model
from mechforget.shapes import Array, Float
from mechforget.sweeps.chunks import Chunk
from mechforget.sweeps.donor import capture

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.tasks import Encoded

SEQUENCES, HALF = 50, 20  # repeated random sequences for the induction and previous-token scores


def entropy(p: Float[Array, "*place key"]) -> Float[Array, "*place"]:
    """Bits, over the last axis; 0 log 0 = 0."""
    return -(p * np.log2(np.where(p > 0, p, 1))).sum(-1)


def whole(p: Float[Array, "*place key"]) -> Float[Array, "*place key+1"]:
    """Weight that a row does not give to its keys (an attention sink's) is one more key."""
    return np.concatenate([p, 1 - p.sum(-1, keepdims=True)], -1).clip(0, 1)


def js(p: Float[Array, "*place key"], q: Float[Array, "*place key"]) -> Float[Array, "*place"]:
    """Jensen-Shannon divergence over the last axis, bits: 0 same, 1 disjoint.

    H((p+q)/2) - (H(p)+H(q))/2 (Lin 1991), of rows made whole.
    """
    p, q = whole(p), whole(q)
    return (entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2).clip(0, 1)


@measure
def attention_change(inputs: Inputs) -> "xr.Dataset":
    """Where each head looks, before and after, on the task's prompts and answers.

    Returns: per (layer, head, prompt), over queries from the second on (the first has one key):
        `js`: bits, 0 same to 1 disjoint; `js_last`: at the prompt's last token; and with `at` =
        pre, post: `entropy` (bits), `first` (weight on position 0).
    Raises: MeasureError: the backend cannot read this model's patterns.
    Source: Lin 1991, doi:10.1109/18.61115. Blind to a head whose values moved and pattern did not.
    Examples:
        >>> js(np.array([0.5, 0.5, 0]), np.array([0, 0, 1.0])).item()  # disjoint
        1.0
        >>> attention_change(planted).js.max(("head", "prompt")).values > 0  # after layer 1
        array([False, False,  True])
    """
    _readable(inputs)

    def some(chunk: Chunk) -> "xr.Dataset":
        pre, post = (patterns(m, chunk.encoded) for m in (inputs.pre, inputs.post))
        return change(pre, post, chunk.encoded)

    return described(
        inputs.over_prompts("attention change", some, variants=1),
        "Lin 1991, doi:10.1109/18.61115",
        js=("bit", "Jensen-Shannon divergence of the attention patterns"),
        js_last=("bit", "the same at the prompt's last token"),
        entropy=("bit", "entropy of the attention pattern"),
        first=("share", "attention on position 0"),
    )


def patterns(model: Model, encoded: "Encoded") -> np.ndarray:
    """Attention probabilities [layer, row, head, query, key] of each prompt's right-answer row."""
    points = [(layer, "pattern") for layer in range(model.spec.layers)]
    found = capture(model, encoded.fed, points, encoded.parent)
    each = [encoded.pattern_by_row(found[point], encoded.first_rows) for point in points]
    return np.stack([p.double().cpu().numpy() for p in each])


def change(pre: np.ndarray, post: np.ndarray, encoded: "Encoded") -> "xr.Dataset":
    """The measure on two arrays [layer, prompt, head, query, key]."""
    import xarray as xr

    rows = encoded.first_rows
    queries = np.arange(pre.shape[-2])
    real = (queries > 0) & (queries < encoded.length[rows, None])  # [prompt, query]
    for p in (pre, post):
        by_query = rearrange(p, "layer prompt head query key -> prompt query layer head key")
        if not np.isfinite(by_query[real]).all():
            raise MeasureError("attention patterns hold NaN: use float32")
    within = (queries < encoded.length[rows, None])[:, None, :, None]
    pre, post = (np.where(within, p, 0) for p in (pre, post))  # padding holds anything
    weight = real / np.maximum(real.sum(1, keepdims=True), 1)  # a one-token prompt has no query

    def over_queries(x: np.ndarray) -> np.ndarray:
        return np.einsum("lphq,pq->lhp", x, weight)

    distance = js(pre, post)
    last = encoded.prompt_length[rows] - 1
    dims = ("layer", "head", "prompt")
    js_last = distance[:, np.arange(len(rows)), :, last]
    js_last = rearrange(js_last, "prompt layer head -> layer head prompt")
    both: dict[str, Any] = {
        "entropy": [over_queries(entropy(whole(p))) for p in (pre, post)],
        "first": [over_queries(p[..., 0]) for p in (pre, post)],
    }
    return xr.Dataset(
        {
            "js": (dims, over_queries(distance)),
            "js_last": (dims, js_last),
            **{k: (("at", *dims), np.stack(v)) for k, v in both.items()},
        },
        coords={
            "layer": range(pre.shape[0]),
            "head": range(pre.shape[2]),
            "at": list(AT),
            "cluster": ("prompt", encoded.cluster),
        },
    )


@measure
def attention_roles(inputs: Inputs, *, seed: int = 0) -> "xr.Dataset":
    """Induction and previous-token scores, before and after, on repeated random tokens.

    Returns: per (at, layer, head, sequence) the mean weight from a token of the second half to the
        one after its first occurrence (`induction`) and to the one before it (`previous`), 0 to 1.
    Source: Olsson et al. 2022, 2209.11895. Blind to roles on natural text.
    Examples:
        >>> found = attention_roles(same)
        >>> bool((found.sel(at="pre") == found.sel(at="post")).induction.all())  # one model
        True
    """
    import torch
    import xarray as xr

    _readable(inputs)
    vocabulary = inputs.post.spec.d_vocab
    half = np.random.default_rng(seed).integers(0, vocabulary, (SEQUENCES, HALF))
    ids = np.tile(half, 2)
    query = np.arange(HALF, 2 * HALF)
    found: dict[str, list[Any]] = {"induction": [], "previous": []}
    for model in (inputs.pre, inputs.post):
        tokens = torch.as_tensor(ids, device=model.device)
        layers = range(model.spec.layers)
        got = capture(model, tokens, [(layer, "pattern") for layer in layers])
        each = [got[layer, "pattern"].cpu() for layer in layers]
        p = torch.stack(each)  # [layer, sequence, head, query, key]
        for name, key in (("induction", query - HALF + 1), ("previous", query - 1)):
            score = p[..., query, key].double().mean(-1).numpy()
            found[name].append(rearrange(score, "layer sequence head -> layer head sequence"))
    dims = ("at", "layer", "head", "sequence")
    spec = inputs.post.spec
    roles = xr.Dataset(
        {name: (dims, np.stack(value)) for name, value in found.items()},
        coords={"at": list(AT), "layer": range(spec.layers), "head": range(spec.heads)},
        attrs={"seed": seed},
    )
    return described(
        roles,
        "2209.11895",
        induction=("share", "attention on the token after the first occurrence"),
        previous=("share", "attention on the token before"),
    )


def _readable(inputs: Inputs) -> None:
    if not readable(inputs):
        raise MeasureError(
            f"attention patterns of a {inputs.post.spec.family} model cannot be read: leave "
            "attention_change out of the measures"
        )


def readable(inputs: Inputs) -> bool:
    """Whether every layer shows its pattern, and one that was changed moved the logits."""
    model = inputs.post
    shown = all(model.serves(layer, "pattern") for layer in range(model.spec.layers))
    return shown and "pattern" in model.spec.sites
