"""What a run's numbers are made from: its manifest, written before the first of them."""

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechforget import __version__, checkpoints
from mechforget.measures import Inputs
from mechforget.measures.patching import completeness
from mechforget.study.settings import Study
from mechforget.study.store import LAYOUT, SHOWN, Store

if TYPE_CHECKING:
    from mechforget.tasks import Task

COMPLETE = "pre's last residual, final norm and unembedding restore 100 %"
VERSIONS = (
    "torch",
    "transformers",
    "transformer_lens",
    "nnsight",
    "numpy",
    "scipy",
    "xarray",
    "zarr",
)


def describe(
    store: Store,
    study: Study,
    pair: checkpoints.Pair,
    task: "Task",
    new_task: "Task | None",
    inputs: Inputs,
    left_out: list[str],
    digests: dict[str, str],
) -> None:
    """Writes what the numbers are made from into the manifest, before the first of them."""
    from importlib.metadata import version

    proofs = [
        (f"{p.name} ({which})", p)
        for which in ("pre", "post")
        for p in getattr(inputs, which).proofs
    ]
    spec = inputs.post.spec
    dtype = inputs.post.dtype
    if dtype != study.dtype:
        left_out = [*left_out, f"arithmetic is {dtype}: the server's choice, not --dtype's"]
    tokens = pair.pre.tokenizer()
    encoded = inputs.encoded
    store.manifest |= {
        "mechforget": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in VERSIONS},
        "dtype": dtype,
        "layout": LAYOUT,
        "memory": inputs.memory,
        "digests": digests,
        "commit": _commit(),
        "model": {
            "name": spec.family,
            "layers": spec.layers,
            "heads": spec.heads,
            "kv_heads": spec.kv_heads,
            "d_model": spec.d_model,
            "experts": spec.experts,
        },
        "notes": [*task.notes, *encoded.notes, *left_out],
        "checks": [{"name": name, "pass": p.passed, "detail": p.detail} for name, p in proofs],
        "prompts": _prompts(task),
        "new_prompts": _prompts(new_task),
        "tokens": [
            [tokens.decode([i]) for i in encoded.ids[row, : encoded.length[row]]]
            for row in encoded.first_rows[:SHOWN]
        ],
    }
    store.save()


def check_completeness(store: Store, study: Study, inputs: Inputs) -> None:
    """Adds to the checks, once, whether putting in all that comes after the layers restores all."""
    checks = store.manifest["checks"]
    if not inputs.post.spec.resident:  # nothing can be lent
        return
    if any(check["name"] == COMPLETE for check in checks):
        return
    gap = completeness(inputs)
    passed = gap < (1e-3 if study.dtype == "float32" else 0.1)
    checks.append({"name": COMPLETE, "pass": passed, "detail": f"largest gap {gap:.1e} nats"})
    store.save()


def changed(store: Store, digests: dict[str, str], task: "Task", new_task: "Task | None") -> str:
    """Names what is no longer the same as when the interrupted run was started."""
    was = store.manifest
    names = [name for name, digest in digests.items() if was["digests"].get(name) != digest]
    names += ["the task"] * (was["prompts"] != _prompts(task))
    names += ["the new task"] * (was.get("new_prompts", []) != _prompts(new_task))
    return ", ".join(names)


def _prompts(task: "Task | None") -> list[dict[str, Any]]:
    if task is None:
        return []
    columns = [c for c in ("prompt", "answer", "wrong", "subject", "template") if c in task.rows]
    return json.loads(str(task.rows[columns].to_json(orient="records")))


def _commit() -> str | None:
    """The commit of the checkout that mechforget runs from, if there is one."""
    import subprocess

    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
