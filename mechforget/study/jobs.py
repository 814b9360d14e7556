"""What a study runs, in order, and what each part costs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mechforget import checkpoints, measures
from mechforget.measures import Inputs
from mechforget.measures.attribution import screened
from mechforget.measures.grafting import MATRICES
from mechforget.study.needs import SCREENED, needs
from mechforget.study.settings import Study

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    Get = Callable[[str], xr.Dataset]  # earlier results, by name
    Run = Callable[[Get], xr.Dataset]


@dataclass(frozen=True)
class Job:
    """One result: its name in the store, how to get it, how many blocks each row runs through."""

    name: str
    run: "Run"
    blocks: float


def jobs(
    study: Study,
    pair: Inputs,
    new: Inputs | None,
    controls: dict[str, Inputs],
    *,
    files: checkpoints.Pair | None = None,
    shared: "np.ndarray | None" = None,
) -> list[Job]:
    """How to get what the study needs, of this pair; in the order of `needs`. files: the pair on
    the disk, for its weights. shared: the prompts of both tasks about one subject."""
    spec = pair.post.spec
    length = pair.encoded.ids.shape[1]
    runs: dict[str, Run] = {
        "forgetting": lambda get: measures.forgetting(pair),
        "attention_change": lambda get: measures.attention_change(pair),
        "attention_roles": lambda get: measures.attention_roles(pair, seed=study.seed),
        "logit_attribution": lambda get: measures.logit_attribution(pair),
        "grafting/all": lambda get: measures.grafting(pair),
        "grafting/experts": lambda get: measures.grafting_experts(pair),
        "grafting/matrices": lambda get: measures.grafting(
            pair, matrices=tuple(MATRICES)[:4], heads=_top(get("grafting/all"), study.graft_top)
        ),
        "sets": lambda get: _sets(study, pair, get),
        "clean_corrupt": lambda get: measures.clean_corrupt(pair),
        "patching_positions": lambda get: measures.patching(
            pair, site="resid_pre", positions=range(length)
        ),
        "drift": lambda get: measures.drift(pair),
        "readout": lambda get: measures.readout(pair, seed=study.seed),
        "routing": lambda get: measures.routing(pair),
        "routing_restored": lambda get: measures.routing_restored(pair),
        "ledger": lambda get: measures.ledger(pair),
        "origins": lambda get: _origins(pair, get),
        "landscape/line": lambda get: measures.loss_line(pair, seed=study.seed),
        "landscape/sharpness": lambda get: measures.sharpness(pair, seed=study.seed),
        "landscape/curvature": lambda get: measures.curvature(pair, seed=study.seed),
    }
    for site in SCREENED:
        runs[f"attribution/{site}"] = partial(_attribution, pair, site)
    if new is not None:
        path = (0.0, 1.0) if study.backend == "remote" else (0.0, 0.5, 1.0)
        runs |= {
            "forgetting_new": lambda get: measures.forgetting(new),
            "interference": lambda get: measures.interference(
                pair, new=new.encoded, at=path, seed=study.seed
            ),
            "similarity": lambda get: measures.similarity(pair, other=new.encoded, pairs=shared),
            "landscape/line_new": lambda get: measures.loss_line(new, seed=study.seed),
        }
    if files is not None:
        runs["weights"] = lambda get: measures.weights(files)
    if "twin" in controls:
        runs["control_twin/drift"] = lambda get: measures.drift(controls["twin"])
    if spec.resident:
        runs["grafting/modules"] = lambda get: measures.grafting_modules(pair)
    for prefix, inputs in ("", pair), *((f"control_{name}/", x) for name, x in controls.items()):
        for site in study.sites:
            screen = study.screen if site in SCREENED and not prefix else None
            runs[f"{prefix}patching/{site}"] = partial(_patching, inputs, site, screen)
    todo = needs(study, spec, *pair.encoded.ids.shape)
    return [
        Job(need.name, runs[need.name], need.blocks(spec.layers))
        for need in todo
        if need.name in runs  # a checkpoint between has no controls
    ]


def _attribution(inputs: Inputs, site: str, get: "Get") -> "xr.Dataset":
    return measures.attribution(inputs, site=site)


def _patching(inputs: Inputs, site: str, screen: int | None, get: "Get") -> "xr.Dataset":
    heads = None if screen is None else screened(get(f"attribution/{site}"), screen)
    return measures.patching(inputs, site=site, heads=heads)


def _sets(study: Study, pair: Inputs, get: "Get") -> "xr.Dataset":
    effect = get("patching/head_out").effect.sel(metric="log_prob", direction="restore")
    return measures.top_sets(pair, effect=effect, seed=study.seed)


def _origins(pair: Inputs, get: "Get") -> "xr.Dataset":
    """Of the head that restores most."""
    effect = get("patching/head_out").effect.sel(metric="log_prob", direction="restore")
    mean = effect.mean("prompt").transpose("layer", "head")
    layer, head = divmod(int(mean.fillna(-float("inf")).values.argmax()), mean.sizes["head"])
    return measures.origins(pair, layer=layer, head=head)


def _top(grafting: "xr.Dataset", n: int) -> list[tuple[int, int]]:
    """The heads whose whole graft does most, either way."""
    effect = abs(grafting.effect.sel(metric="log_prob", matrix="all").mean("prompt")).max(
        "direction"
    )
    order = effect.values.ravel().argsort()[::-1][:n]
    return [divmod(int(i), effect.sizes["head"]) for i in order]
