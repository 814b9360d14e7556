"""Every prompt: its scores before and after, and the head that gives most of its loss back."""

from typing import Any

import numpy as np

from mechforget.measures.forgetting import change
from mechforget.study.store import Store


def prompts(store: Store) -> list[dict[str, Any]]:
    """One row per prompt; each score is [before, after]."""
    data = store.get("forgetting")
    score = data.score.transpose("prompt", "metric", "at")
    top = None
    if store.has("patching/head_out"):
        effect = store.get("patching/head_out").effect.sel(metric="log_prob", direction="restore")
        top = effect.transpose("prompt", "layer", "head").values.reshape(effect.sizes["prompt"], -1)
    lost = change(data.score).sel(metric="log_prob").values
    found = []
    for i, row in enumerate(store.manifest["prompts"]):
        head = None
        if top is not None and lost[i] > 0 and not np.isnan(top[i]).all():
            head = list(divmod(int(np.nanargmax(top[i])), store.manifest["model"]["heads"]))
        found.append(
            {
                "text": row["prompt"],
                "answer": row["answer"],
                "wrong": row.get("wrong"),
                "cluster": int(data.cluster.values[i]),
                **{
                    m: score[i].sel(metric=m).values.tolist()
                    for m in ("log_prob", "logit_diff", "correct")
                },
                "top_head": head,
            }
        )
    return found
