"""Where a mixture of experts sends its tokens, before and after."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.measures.forgetting import AT
from mechforget.study.store import Store
from mechforget.study.tables.frames import band, integers, intervals

if TYPE_CHECKING:
    import pandas as pd


def routing(store: Store) -> "pd.DataFrame":
    """Per layer of a mixture: divergence, overlap, load, angles, and what routing restores."""
    import pandas as pd

    data = store.get("routing")
    found = [
        intervals(data[name], unit).assign(quantity=name)
        for name, unit in (("js", "bit"), ("overlap", "share"))
    ]
    for name, unit in (
        ("load_js", "bit"),
        ("load_entropy", "bit"),
        ("expert_load", "share"),
        ("angle", "degree"),
    ):
        table = data[name].to_dataframe(name="value").reset_index()
        found.append(table.assign(quantity=name, unit=unit))
    if store.has("routing_restored"):
        restored = store.get("routing_restored")
        for name in ("effect", "every"):
            table = intervals(restored[name], "nats")
            found.append(table.assign(quantity=f"routing restored ({name})"))
    table = pd.concat(found, ignore_index=True)
    order = ["quantity", "metric", "direction", "at", "layer", "expert", "value", "low", "high",
             "unit"]  # fmt: skip
    return integers(table.reindex(columns=order))


def by_layer(store: Store) -> dict[str, Any]:
    """The same in arrays by layer of a mixture, with intervals; `restored`: None where it was not
    measured."""
    data = store.get("routing")
    cluster = data.cluster.values
    load = data.expert_load.transpose("at", "layer", "expert")
    entropy = data.load_entropy.transpose("at", "layer")
    restored = None
    if store.has("routing_restored"):
        given = store.get("routing_restored").sel(metric="log_prob")
        restored = {
            str(d): {
                "layer": band(
                    given.effect.sel(direction=d).transpose("layer", "prompt").values,
                    given.cluster.values,
                ),
                "every": band(given.every.sel(direction=d).values, given.cluster.values),
            }
            for d in given.direction.values
        }
    return {
        "overlap": band(data.overlap.transpose("layer", "prompt").values, cluster),
        "js": band(data.js.transpose("layer", "prompt").values, cluster),
        **{f"load_{at}": np.ravel(load.sel(at=at).values) for at in AT},
        "load_change": np.ravel(load.sel(at=AT[1]).values - load.sel(at=AT[0]).values),
        "load_js": data.load_js.values,
        **{f"load_entropy_{at}": entropy.sel(at=at).values for at in AT},
        "angle": np.ravel(data.angle.transpose("layer", "expert").values),
        "restored": restored,
    }
