"""How much was forgotten: one row per metric, and whether it is significant."""

from typing import TYPE_CHECKING

import numpy as np

from mechforget.measures.forgetting import change
from mechforget.measures.inputs import UNITS
from mechforget.statistics import default_floor, interval, mean, sign_flip
from mechforget.study.store import Store
from mechforget.study.tables.frames import once

if TYPE_CHECKING:
    import pandas as pd


@once
def forgetting(store: Store, name: str = "forgetting") -> "pd.DataFrame":
    """One row per metric: pre, post, change = post - pre, its interval, n clusters, p."""
    import pandas as pd

    data = store.get(name)
    rows = []
    for metric in UNITS:
        score = data.score.sel(metric=metric)
        values, cluster = -change(score).values, data.cluster.values
        present = ~np.isnan(values)
        estimate, low, high = interval(values, cluster)
        p = sign_flip(values, cluster)
        floor = float(default_floor(metric, 0.0, False))
        rows.append(
            {
                "metric": metric,
                "pre": float(mean(score.sel(at="pre").values)),
                "post": float(mean(score.sel(at="post").values)),
                "change": float(estimate),
                "change_low": float(low),
                "change_high": float(high),
                "n": len(np.unique(cluster[present])),
                "unit": UNITS[metric],
                "p": float(p),
                "significant": bool(p <= 0.05 and abs(estimate) > floor),
            }
        )
    return pd.DataFrame(rows)


def forgotten(table: "pd.DataFrame", metric: str) -> bool:
    """Whether this metric significantly fell."""
    row = table.set_index("metric").loc[metric]
    return bool(row["significant"] and row["change"] < 0)
