"""Do the mechanisms point at the same heads? Every measure of every head, side by side."""

from typing import TYPE_CHECKING

import numpy as np

from mechforget.measures.interference import NEW, OLD
from mechforget.measures.ledger import by_head
from mechforget.statistics import rank_correlation
from mechforget.statistics.minibatches import quantities
from mechforget.study.store import Store
from mechforget.study.tables.frames import once

if TYPE_CHECKING:
    import pandas as pd

MEANING = {
    "restore": "patching head_out, nats of log p given back",
    "break": "patching head_out, nats of log p taken",
    "attribution": "first-order estimate of restore, nats",
    "dla_change": "direct logit attribution, post - pre, nats",
    "ledger": "share of the loss's rise written in its weights, nats",
    "graft": "grafting all its weights, restore, nats",
    "interference": "noise-corrected cosine of the two tasks' gradients at pre, W_Q with W_O",
    "attention_js": "Jensen-Shannon divergence of its pattern, bits",
    "weights": "relative change of its weights",
}


@once
def agreement(store: Store) -> "pd.DataFrame":
    """One row for each layer and head, one column for each measure that was run; see `MEANING`."""
    import pandas as pd

    model = store.manifest["model"]
    shape = model["layers"], model["heads"]
    found: dict[str, np.ndarray] = {}

    def mean(name: str, **at: str) -> np.ndarray:
        array = store.get(name).effect.sel(metric="log_prob", **at).mean("prompt")
        return array.transpose("layer", "head").values

    if store.has("patching/head_out"):
        found["restore"] = mean("patching/head_out", direction="restore")
        found["break"] = mean("patching/head_out", direction="break")
    if store.has("attribution/head_out"):
        found["attribution"] = mean("attribution/head_out", direction="restore")
    if store.has("logit_attribution"):
        heads = store.get("logit_attribution").heads.mean("prompt")
        both = heads.sel(at="post", drop=True) - heads.sel(at="pre", drop=True)
        found["dla_change"] = both.transpose("layer", "head").values
    if store.has("ledger"):
        found["ledger"] = by_head(store.get("ledger")).mean("prompt").values
    if store.has("grafting/all"):
        found["graft"] = mean("grafting/all", direction="restore", matrix="all")
    if store.has("interference"):
        found["interference"] = _interference(store, shape)
    if store.has("attention_change"):
        found["attention_js"] = store.get("attention_change").js.mean("prompt").values
    if store.has("weights") and "relative" in store.get("weights"):
        found["weights"] = _weights(store, shape)
    layer, head = np.indices(shape)
    return pd.DataFrame(
        {"layer": layer.ravel(), "head": head.ravel()} | {k: v.ravel() for k, v in found.items()}
    )


def _interference(store: Store, shape: tuple[int, int]) -> np.ndarray:
    """Of W_Q and W_O together; NaN where the gradients are noise."""
    data = store.get("interference").isel({"at": 0})
    old, new = (np.flatnonzero(data.task.values == name) for name in (OLD, NEW))
    part, layer, unit = (data[name].values for name in ("part", "layer", "unit"))
    mine = np.isin(part, ("W_Q", "W_O"))
    gram = np.zeros((*shape, *data.gram.shape[1:]))
    np.add.at(gram, (layer[mine], unit[mine]), data.gram.values[mine])
    return quantities(gram, old, new)["corrected"]


def _weights(store: Store, shape: tuple[int, int]) -> np.ndarray:
    """Relative change of a head's W_Q and W_O and its group's W_K and W_V, as one vector."""
    data = store.get("weights")
    norm, pre = (data[name].transpose("layer", "matrix", "head").values for name in
                 ("norm", "norm_pre"))  # fmt: skip
    kv, heads = store.manifest["model"]["kv_heads"], shape[1]
    matrices = data["matrix"].values.tolist()
    found = np.zeros((2, *shape))
    for m, matrix in enumerate(matrices):
        for head in range(heads):
            unit = head * kv // heads if matrix in ("W_K", "W_V") else head
            found[:, :, head] += np.stack([norm[:, m, unit], pre[:, m, unit]]) ** 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sqrt(found[0] / found[1])


@once
def correlations(store: Store) -> "pd.DataFrame":
    """One row per pair of measures: Spearman's rank correlation of |value| over heads, with a 95 %
    interval that resamples layers (heads of one layer share their input), and n heads.

    Of absolute values: the measures have different signs, and the question is where, not which way.
    """
    import pandas as pd

    table = agreement(store)
    names = [c for c in table.columns if c not in ("layer", "head")]
    rows = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            rho, low, high, n = rank_correlation(
                table[a].abs().to_numpy(float),
                table[b].abs().to_numpy(float),
                table["layer"].to_numpy(),
            )
            rows.append({"a": a, "b": b, "spearman": rho, "low": low, "high": high, "n": n})
    return pd.DataFrame(rows, columns=["a", "b", "spearman", "low", "high", "n"])
