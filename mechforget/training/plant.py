"""Planted damage: a copy of a model that is broken in known places, and a record of these places.

It shows whether a measure works: does the measure rank the planted heads, layers and experts above
all others, and does it find nothing if the function hasn't changed?
"""

import copy
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechforget import __version__, checkpoints
from mechforget.checkpoints import Checkpoint
from mechforget.checkpoints.quiet import quiet
from mechforget.errors import StudyError
from mechforget.training import finished
from mechforget.training.damage import KINDS, Damage, Target, changes, targets
from mechforget.training.places import Place, located, sharing

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from mechforget.models.nnsight import NNsight

TRUTH = "planted.json"


def plant(
    pre: str | Path | Checkpoint, out: str | Path, damages: Sequence[Damage], *, seed: int = 0
) -> Path:
    """Save a damaged copy of a checkpoint (float32 safetensors) and its tokenizer; returns `out`.

    `out` also gets planted.json: the ground truth (`planted`), PRE with its digest, and versions.
    Raises: StudyError: as `planted`; `out` exists already; PRE is an adapter. CheckpointError: PRE
        cannot be opened. OSError: the disk is full; then `out` doesn't exist.
    """
    out, pre = Path(out).expanduser(), checkpoints.open(pre)
    if out.exists():
        raise StudyError(f"{out} exists already: {finished.INSTEAD}")
    if pre.kind == "adapter":
        raise StudyError(
            f"{pre.ref} is an adapter, whose heads have no weights of their own: merge it (load(), "
            "save_pretrained()) and plant in that folder"
        )
    pre.check()
    check(pre.config, damages, seed)
    model, truth = planted(pre.load(), damages, seed=seed)
    with finished.whole(out) as partial, quiet(), finished.disk_errors(out):
        model.save_pretrained(partial)
        pre.tokenizer().save_pretrained(partial)
        write(partial, pre, truth)
    return out


def planted(
    hf_model: "PreTrainedModel", damages: Sequence[Damage], *, seed: int = 0
) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """A damaged copy of a model, and the ground truth. All other weights keep their bits.

    Returns: the truth is for JSON: `seed`; whose weights were changed: `heads` [layer, head],
        `experts` [layer, expert], `mlps` and `gates` [layer]; and `damages`, one entry per slice
        (`described`).
    Raises: StudyError: there is nothing to plant, no such place, a seed out of range, or two
        damages at one place. ModelError: the architecture cannot be read. SweepError: the backend
        can't access the matrix.
    """
    import torch

    check(hf_model.config, damages, seed)
    damaged = copy.deepcopy(hf_model)
    told: list[dict[str, Any]] = []
    taken: dict[str, Tensor] = {}
    with torch.no_grad():
        model = sharing(damaged)
        for target in targets(model, damages):
            tensors: dict[str, Any] = {}
            for view, new in changes(model, target, seed):
                name, mask = located(damaged, view)
                if name in taken and bool((taken[name] & mask).any()):
                    raise StudyError(
                        f"two damages change the same entries of {name}: plant one per place"
                    )
                taken[name] = taken[name] | mask if name in taken else mask
                was = view.double().clone()
                view.copy_(new)
                _count(tensors, name, was, view.double())
            told.append(described(model, target, tensors))
    return damaged, {"seed": seed, **summary(told), "damages": told}


def check(config: "PreTrainedConfig", damages: Sequence[Damage], seed: int) -> None:
    """Check against the config alone. Raises: StudyError: as `planted`."""
    if not damages:
        raise StudyError(f"nothing to plant: want one of {', '.join(KINDS)}")
    if not 0 <= seed < 2**32:
        raise StudyError(f"seed {seed}: want 0 to 2**32 - 1")
    for damage in damages:
        Place.parse(damage.at).check(config)


def _count(tensors: dict[str, Any], name: str, was: "Tensor", now: "Tensor") -> None:
    """Add a slice to the record of what was changed in a tensor."""
    before = tensors.get(name, {"entries": 0, "norm": 0.0, "change": 0.0})
    tensors[name] = {
        "entries": before["entries"] + was.numel(),
        "norm": float((before["norm"] ** 2 + was.square().sum()) ** 0.5),
        "change": float((before["change"] ** 2 + (now - was).square().sum()) ** 0.5),
    }


def described(model: "NNsight", target: Target, tensors: dict[str, Any]) -> dict[str, Any]:
    """The ground truth of one slice: kind, amount, layer, part (q, k, v, o, vo, expert, mlp, gate),
    heads or expert, and whether the function stays the same. For each tensor: how many `entries`
    were written, their `norm` before, and ‖ΔW‖ as `change`."""
    one: dict[str, Any] = {"kind": target.kind, "amount": target.amount}
    one |= {"layer": target.layer, "part": target.part}
    if heads := target.heads(model):
        one["heads"] = heads
    if target.part == "expert":
        one["expert"] = target.unit
    return one | {"keeps_function": target.kind == "compensate", "tensors": tensors}


def summary(told: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The heads, experts, MLPs and gates that these damages changed."""
    told = list(told)

    def layers(part: str) -> list[int]:
        return sorted({one["layer"] for one in told if one["part"] == part})

    heads = sorted({(one["layer"], head) for one in told for head in one.get("heads", ())})
    experts = sorted({(one["layer"], one["expert"]) for one in told if "expert" in one})
    return {
        "heads": [list(head) for head in heads],
        "experts": [list(expert) for expert in experts],
        "mlps": layers("mlp"),
        "gates": layers("gate"),
    }


def write(folder: Path, pre: Checkpoint, truth: dict[str, Any]) -> None:
    """planted.json: the truth, and what it was planted in."""
    record = {
        "pre": pre.ref if pre.kind == "hub" else str(pre.path),
        "pre_digest": pre.digest(),
        "versions": {"mechforget": __version__, "torch": version("torch")},
        **truth,
    }
    (folder / TRUTH).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
