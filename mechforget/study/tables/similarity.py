"""How alike the old and the new task are: by their activations and by their gradients."""

from typing import TYPE_CHECKING

import numpy as np

from mechforget.measures.similarity import fisher_overlap, gradient_cosine
from mechforget.study.store import Store
from mechforget.study.tables.frames import integers

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def similarity(store: Store) -> "pd.DataFrame":
    """Of the old and the new task: CKA by depth, cosines, and of their gradients at pre."""
    import pandas as pd

    data = store.get("similarity")
    cka = data.cka.to_dataset("bound").to_dataframe().reset_index().assign(quantity="cka")
    cosine = data.cosine.to_dataset("bound").to_dataframe().reset_index()
    cosine["quantity"] = "cosine of " + cosine["of"].astype(str)
    found = [cka, cosine.drop(columns="of")]
    if store.has("interference"):
        found.append(_gradients(store.get("interference")))
    table = pd.concat(found, ignore_index=True).assign(unit="1")
    return integers(table.reindex(columns=["quantity", "depth", "value", "low", "high", "unit"]))


def _gradients(data: "xr.Dataset") -> "pd.DataFrame":
    import pandas as pd

    whole = data.whole.isel({"at": 0}).values
    old, new = (data.whose.values == name for name in ("old", "new"))
    blocks = whole[np.ix_(old, old)], whole[np.ix_(old, new)], whole[np.ix_(new, new)]
    clusters = data.prompt_cluster.values[old], data.prompt_cluster.values[new]
    rows = []
    for name, of in (("gradient cosine", gradient_cosine), ("Fisher overlap", fisher_overlap)):
        got = of(*blocks, *clusters)
        ends = dict(zip(("value", "low", "high"), map(float, got), strict=True))
        rows.append({"quantity": name, **ends})
    return pd.DataFrame(rows)
