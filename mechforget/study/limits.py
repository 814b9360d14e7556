"""What the results say about their own limits: errors of estimates, caveats, omissions."""

from typing import Any

from mechforget.study.store import Store
from mechforget.study.tables.interference import interference
from mechforget.study.verdict import number, percent


def limits(store: Store) -> list[dict[str, str]]:
    """One row for each result that has such a remark: its name, and the remark."""
    found = []
    if store.has("ledger"):
        data = store.get("ledger")
        gap, change = (float(data[name].mean()) for name in ("gap", "change"))
        nodes = int(data.nodes.max())
        said = f"the shares miss {number(gap)} of {number(change)} nats, at most {nodes} nodes"
        found.append(("ledger", said))
    for name in ("drift", "control_twin/drift", "readout"):
        if store.has(name) and (said := store.get(name).attrs.get("caveat")):
            found.append((name, said))
    if store.has("interference"):
        table: Any = interference(store).query("quantity == 'reliability' and at == 0")
        alike = percent(float(table.loc[table["matrix"] == "all", "value"].iloc[0]))
        said = f"the old task's own minibatches agree in sign in {alike} of their pairs"
        found.append(("interference", said))
    if store.has("landscape/curvature"):
        data = store.get("landscape/curvature")
        said = f"curvature is of {data.sizes['chosen']} prompts"
        found.append(("landscape", "; ".join(s for s in (said, data.attrs["note"]) if s)))
    if store.has("routing"):
        found.append(("routing", f"gates are read as {store.get('routing').attrs['rule']}"))
    if store.has("weights") and (said := store.get("weights").attrs.get("notes")):
        found.append(("weights", said))
    return [{"name": name, "detail": said} for name, said in found]
