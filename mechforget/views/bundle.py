"""The bundle: a run's tables as plain JSON, which report, app and widget show."""

import base64
import gzip
import math
from typing import Any

import numpy as np

from mechforget.study import catalogue, export
from mechforget.study.limits import limits
from mechforget.study.store import Store
from mechforget.study.tables import heads
from mechforget.study.tables.attribution import estimated
from mechforget.study.tables.effects import floors, grafting, patching, sets, site_names
from mechforget.study.tables.forgetting import forgetting
from mechforget.study.tables.prompts import prompts
from mechforget.study.verdict import verdict
from mechforget.views import mechanisms, together

ARRAYS = ("effect", "low", "high", "share", "share_low", "share_high", "p", "q", "significant")
EMPTY = {
    "circuit": "Edges between heads are not measured yet.",
    "drift": "The residual streams were not compared. `mechforget compare … --measures drift` "
    "fills this; `--control-twin` adds the band of mere training noise.",
    "interference": "The two tasks' gradients were not compared. `mechforget compare … --new-task "
    "TASK --measures interference` fills this.",
    "landscape": "The loss between the checkpoints was not measured. `mechforget compare … "
    "--measures landscape` fills this; `--new-task TASK` adds the new task's loss.",
    "ledger": "The loss was not traced back to the weights. `mechforget compare … "
    "--measures ledger` fills this.",
    "readout": "No probes were fitted. `mechforget compare … --measures readout` fills this.",
    "routing": "Routing was not compared; only mixtures of experts have it: `mechforget compare … "
    "--measures routing` fills this.",
    "agreement": "This run has fewer than two measures of single heads. `mechforget compare … "
    "--measures patching grafting ledger` fills this.",
    "claims": "No claim could be tested on this run.",
}
DENSE = "This model is dense: it has no experts and no router, so there is no routing to compare."
UNSEEN = (
    "No mixture of experts was seen: a dense model has none, and backend transformer_lens does "
    "not show them. `mechforget compare … --backend nnsight` does."
)
# Tables whose numbers a panel draws; every other is shown as it is exported.
DRAWN = {"forgetting", "patching", "sets", "grafting", "attention_change", "attention_roles"}
DRAWN |= {"logit_attribution", "attribution", "ledger", "origins", "weights", "drift", "readout"}
DRAWN |= {"interference", "routing", "landscape"}
ROWS = 500  # of such a table, in the report
MECHANISMS = {
    "drift": mechanisms.drift,
    "interference": mechanisms.interference,
    "landscape": mechanisms.landscape,
    "ledger": mechanisms.ledger,
    "readout": mechanisms.readout,
    "agreement": together.agree,
    "routing": mechanisms.routing,
    "claims": together.board,
}


def bundle(store: Store) -> dict[str, Any]:
    """Reads a finished run and measures nothing. NaN becomes None."""
    manifest, settings = store.manifest, store.manifest["settings"]
    store.get("forgetting")  # nothing can be said without it
    model = {"experts": 0, **manifest["model"]}
    measured = {name: found(store) for name, found in MECHANISMS.items()}
    empty = {k: text for k, text in EMPTY.items() if measured.get(k) is None}
    if not model["experts"] and "routing" in empty:
        empty["routing"] = UNSEEN if settings["backend"] == "transformer_lens" else DENSE
    said = verdict(store)
    table = forgetting(store).assign(task="old")
    rows = table.to_dict("records")
    if store.has("forgetting_new"):
        new = forgetting(store, "forgetting_new").assign(task="new")
        rows += new.to_dict("records")
    for row in rows:
        row["low"], row["high"] = row.pop("change_low"), row.pop("change_high")
    trained = f"training on {settings['new_task']}" if settings["new_task"] else "fine-tuning"
    found = {
        "version": 1,
        "meta": {
            "title": f"What did {trained} do to {settings['task']}?",
            **{k: settings[k] for k in ("pre", "post", "task", "new_task", "seed", "backend")},
            "dtype": manifest.get("dtype", settings["dtype"]),  # a server chooses its own
            "n_prompts": store.get("forgetting").sizes["prompt"],
            "n_clusters": max(row["n"] for row in rows),
            "created": manifest["created"],
            "command": command(settings),
            "versions": {"mechforget": manifest["mechforget"], **manifest["versions"]},
            "digests": manifest["digests"],
            "commit": manifest["commit"],
            "notes": manifest["notes"],
            "screen": settings.get("screen"),
        },
        "model": model,
        "verdict": {
            "sentence": said.sentence,
            "lines": said.lines,
            "warnings": said.warnings,
            "forgetting": said.forgetting,
            "figures": said.figures,
        },
        "forgetting": rows,
        "floor": _floor(store),
        "patching": _patching(store),
        "estimated": _estimated(store),
        "grafting": _grafting(store),
        "sets": _sets(store),
        "heads": {"columns": heads.columns(store)},
        "prompts": prompts(store),
        "attention": _attention(store),
        "checks": manifest["checks"],
        "limits": limits(store),
        **measured,
        "tables": _plain_tables(store),
        "empty": empty,
    }
    return plain(found)


def _plain_tables(store: Store) -> list[dict[str, Any]]:
    """The tables of measures that no panel draws; of a sequence, those of all its checkpoints."""
    found = []
    for entry in catalogue.chosen(tuple(catalogue.names())):
        for name in [t.name for t in entry.exports() if t.name not in DRAWN]:
            if name not in export.available(store):
                continue
            rows = export.table(store, name)
            shown = rows.head(ROWS).astype(object)
            found.append(
                {
                    "name": name,
                    "question": entry.question[0].upper() + entry.question[1:],
                    "columns": list(rows.columns),
                    "rows": shown.values.tolist(),
                    "total": len(rows),
                }
            )
    return found


def command(settings: dict[str, Any]) -> str:
    """The command line that makes this run."""
    import shlex

    from mechforget.study.settings import Study

    words = ["mechforget", "compare", settings["pre"], settings["post"]]
    for key, value in settings.items():
        default = Study.model_fields[key].default
        if key in ("pre", "post") or value == (
            list(default) if isinstance(default, tuple) else default
        ):
            continue
        words.append(f"--{key.replace('_', '-')}")
        if value is not True:
            words += map(str, value) if isinstance(value, list) else [str(value)]
    return shlex.join(words)


def _stats(table: Any, by: str, value: str, size: tuple[int, int]) -> dict[str, Any]:
    """metric -> direction -> arrays, layer by layer; None where nothing was measured."""
    layers, heads = size
    here = table[table[by] == value].rename(columns={"effect_low": "low", "effect_high": "high"})
    with_heads = bool(here["head"].notna().any())
    found: dict[str, Any] = {"heads": with_heads, "metrics": {}}
    for (metric, direction), part in here.groupby(["metric", "direction"]):
        at = (
            part["layer"].astype(int) * heads + part["head"].astype(int)
            if with_heads
            else part["layer"].astype(int)
        )
        arrays = {}
        for name in ARRAYS:
            values: list[Any] = [None] * (layers * heads if with_heads else layers)
            for index, x in zip(at, part[name], strict=True):
                values[int(index)] = x
            arrays[name] = values
        found["metrics"].setdefault(metric, {})[direction] = arrays
    return found


def _size(store: Store) -> tuple[int, int]:
    return store.manifest["model"]["layers"], store.manifest["model"]["heads"]


def _patching(store: Store) -> dict[str, Any]:
    # A map is of heads or of layers.
    sites = [site for site in site_names(store) if site != "expert_out"]
    table = patching(store) if sites else None
    return {site: _stats(table, "site", site, _size(store)) for site in sites}


def _estimated(store: Store) -> dict[str, Any]:
    """Attribution patching, of sites with heads."""
    tables = estimated(store)
    return {site: _stats(table, "site", site, _size(store)) for site, table in tables.items()}


def _grafting(store: Store) -> dict[str, Any]:
    if not store.has("grafting/all"):
        return {}
    table = grafting(store)
    names = [m for m in table["matrix"].unique() if m != "rest"]
    return {name: _stats(table, "matrix", name, _size(store)) for name in names}


def _sets(store: Store) -> list[dict[str, Any]]:
    if not store.has("sets"):
        return []
    table, data = sets(store), store.get("sets")
    lost = -float(forgetting(store).set_index("metric").loc["log_prob", "change"])
    here = table[table["metric"] == "log_prob"]
    top, random = (here[here["set"] == kind] for kind in ("top", "random"))
    chosen = data.chosen.values
    outlined = [
        sorted({(int(a), int(b)) for half in chosen[:, i] for a, b in half if a >= 0})
        for i in range(data.sizes["k"])
    ]
    return [
        {
            "site": "head_out",
            "direction": "restore",
            "metric": "log_prob",
            "k": data.k.values.tolist(),
            "top": {"effect": top["value"].tolist(), **_ends(top)},
            "random": {"mean": random["value"].tolist(), **_ends(random)},
            "forgetting": lost,
            "heads": outlined,
        }
    ]


def _ends(table: Any) -> dict[str, Any]:
    return {"low": table["low"].tolist(), "high": table["high"].tolist()}


def _floor(store: Store) -> dict[str, Any]:
    values, source = [], "fixed: no control pair"
    for site in site_names(store):
        for metric in ("log_prob", "logit_diff", "correct"):
            for direction in ("restore", "break"):
                value, where = floors(store, site, metric, direction)
                source = where if "control" in where and "fixed" not in where else source
                values.append(
                    {"metric": metric, "site": site, "direction": direction, "value": value}
                )
    return {"source": source, "values": values}


def _attention(store: Store) -> dict[str, Any] | None:
    """Lower triangles of the stored prompts' patterns, gzipped bytes in base64."""
    if not store.has("patterns"):
        return None
    pattern = store.get("patterns").pattern
    tokens = store.manifest["tokens"]
    found: dict[str, Any] = {
        "prompts": list(range(len(tokens))),
        "tokens": tokens,
        "layers_heads": "all",
        "scale": 255,
    }
    for i, at in enumerate(("pre", "post")):
        packed = []
        for shown, words in enumerate(tokens):
            t = len(words)
            one = pattern.values[i, :, shown, :, :t, :t].reshape(-1, t, t)
            lower = one[:, *np.tril_indices(t)]
            packed.append(base64.b64encode(gzip.compress(lower.tobytes(), mtime=0)).decode())
        found[at] = packed
    return found


def plain(value: Any) -> Any:
    """numpy and pandas values as JSON has them; NaN and NA as None."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return None if type(value).__name__ == "NAType" else str(value)
