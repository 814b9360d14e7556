"""Which weights changed, and by how much."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.study.store import Store
from mechforget.study.tables.frames import integers

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = ("norm", "norm_pre", "relative", "largest", "changed")  # first among the weights' columns


def weights(store: Store) -> "pd.DataFrame":
    """One row per tensor (kind tensor), head (of W_Q, W_O) or group (of W_K, W_V), and expert."""
    import pandas as pd

    data = store.get("weights")
    found: list[Any] = []
    for kind, first in (("tensor", "tensor_relative"), ("head", "relative"),
                        ("expert", "expert_relative")):  # fmt: skip
        if first not in data:
            continue
        prefix, dims = first.removesuffix("relative"), data[first].dims
        mine = [
            str(name)
            for name, array in data.data_vars.items()
            if str(name).startswith(prefix) and array.dims == dims
        ]
        mine.sort(key=lambda name: (NUMBERS.index(n) if (n := name.removeprefix(prefix)) in NUMBERS
                                    else len(NUMBERS), name))  # fmt: skip
        frame = data[mine].to_dataframe().reset_index()
        frame = frame.rename(columns={name: name.removeprefix(prefix) for name in mine})
        frame = frame.rename(columns={"tensor_layer": "layer", "tensor_matrix": "matrix"})
        frame = frame.dropna(subset=["relative"]).assign(kind=kind)
        if kind == "head":
            of_group = frame["matrix"].isin(["W_K", "W_V"])
            frame["kind"] = np.where(of_group, "group", "head")
            frame["group"], frame["head"] = (
                frame["head"].astype("Int64").where(mine) for mine in (of_group, ~of_group)
            )
        found.append(frame)
    table: Any = pd.concat(found, ignore_index=True)
    order = ("kind", "tensor", "matrix", "projection", "layer", "head", "group", "expert")
    first = [c for c in order if c in table]
    return integers(table[[*first, *table.columns.drop(first)]])
