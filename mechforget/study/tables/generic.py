"""The table of any measure that has none of its own."""

from typing import TYPE_CHECKING

from mechforget.measures.inputs import UNITS
from mechforget.study.store import Store
from mechforget.study.tables.frames import integers, intervals

if TYPE_CHECKING:
    import pandas as pd

# The units of runs of earlier versions, whose variables have no attribute `units`.
OLD_UNITS = {"entropy": "bit", "js": "bit", "first": "share", "induction": "share"}
OLD_UNITS |= {"previous": "share"}


def generic(store: Store, name: str) -> "pd.DataFrame":
    """The dimensions of a result as columns, then value, low, high over its prompts (or
    sequences), and unit; a row for each place, and for each of its variables."""
    import pandas as pd

    data = store.get(name)
    tables = []
    for variable, array in sorted(data.data_vars.items()):  # a folder lists them in any order
        over = "prompt" if "prompt" in array.dims else "sequence"
        given = array.attrs.get("units") or array.attrs.get("unit")
        table = intervals(array, given or OLD_UNITS.get(str(variable), "nats"), over)
        if "metric" in table:
            table["unit"] = [UNITS[m] for m in table["metric"]]
        tables.append(table.assign(quantity=str(variable)))
    table = pd.concat(tables, ignore_index=True)
    last = ["value", "low", "high", "unit"]
    first = [c for c in table.columns if c not in (*last, "quantity")]
    return integers(table.reindex(columns=["quantity", *first, *last]))
