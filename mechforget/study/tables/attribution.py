"""Attribution patching beside the exact effects that were run."""

from typing import TYPE_CHECKING

from mechforget.study.store import Store
from mechforget.study.tables.effects import summary
from mechforget.study.tables.frames import integers, intervals

if TYPE_CHECKING:
    import pandas as pd


def attribution(store: Store) -> "pd.DataFrame":
    """One row per site, metric, direction, layer and head: the first-order estimate, and the exact
    effect where it was run."""
    import pandas as pd

    found = []
    for name in store.finished:
        if not name.startswith("attribution/"):
            continue
        site = name.removeprefix("attribution/")
        data = store.get(name).effect
        table = intervals(data, "nats").assign(site=site, method=store.get(name).attrs["method"])
        if store.has(f"patching/{site}"):
            exact = store.get(f"patching/{site}").effect.mean("prompt")
            exact = exact.sel(metric=data.metric).to_dataframe(name="exact").reset_index()
            keys = [d for d in data.dims if d != "prompt"]
            table = table.merge(exact[[*keys, "exact"]], on=keys, how="left")
        found.append(table)
    return integers(pd.concat(found, ignore_index=True))


def estimated(store: Store) -> "dict[str, pd.DataFrame]":
    """Site -> statistics of the estimates, as `effects.summary` gives them; sites with heads."""
    found = {}
    for name in store.finished:
        kind, _, site = name.partition("/")
        if kind != "attribution" or "head" not in store.get(name).effect.dims:
            continue
        table = summary(store, store.get(name).effect, site).to_dataframe().reset_index()
        found[site] = table.assign(site=site)
    return found
