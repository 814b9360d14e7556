"""What a study runs, in order, and what each part costs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mechforget import checkpoints, measures
from mechforget.errors import MechforgetError, StudyError, SweepError
from mechforget.measures import Inputs
from mechforget.measures.attention_change import readable
from mechforget.measures.attribution import screened
from mechforget.measures.grafting import MATRICES
from mechforget.measures.interference import lacks_for_minibatches
from mechforget.measures.readout import lacks_for_probes
from mechforget.models.beside import reads_weights
from mechforget.models.sites import MATRICES as MATRIX_SITES
from mechforget.study.needs import SCREENED, needs
from mechforget.study.settings import DEFAULT, MEASURES, SITES, Study
from mechforget.sweeps.curvature import require_curvature
from mechforget.sweeps.gradients import require_gradients

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


def served(study: Study, pair: Inputs, new: Inputs | None = None) -> tuple[Study, list[str]]:
    """The study without what this pair can't show of these tasks, and what is left out and why.

    Raises: StudyError: it was asked for by name.
    """
    spec = pair.post.spec
    asks_more = {**_too_few(pair, new), **_asks_more(study, pair)}
    lacks = {
        "attention_change": not readable(pair),
        "logit_attribution": spec.residual_scale is None,
        "grafting": not spec.sites.issuperset(MATRIX_SITES)
        or not (reads_weights(pair.post, pair.pre) and reads_weights(pair.pre, pair.post)),
        "sets": "head_out" not in spec.sites,
        "clean_corrupt": "z" not in spec.sites,
        "patching_positions": "resid_pre" not in spec.sites,
    }
    lacks |= dict.fromkeys(asks_more, True)
    measures = [m for m in study.measures if lacks.get(m)]
    sites = [site for site in study.sites if site not in spec.sites]
    named = [m for m in measures if study.measures not in (DEFAULT, MEASURES)]
    named += [site for site in sites if study.sites != SITES]
    if reasons := [f"{m}: {asks_more[m]}" for m in named if m in asks_more]:
        raise StudyError("; ".join(reasons))
    if named:
        raise StudyError(
            f"{', '.join(named)}: not to be had of a {spec.family} model on backend "
            f"{study.backend}: leave it out"
        )
    kept = {
        "measures": tuple(m for m in study.measures if m not in measures),
        "sites": tuple(site for site in study.sites if site not in sites),
    }
    away = study.backend == "remote"
    stay = away and spec.sites.issuperset(MATRIX_SITES)
    why = f"a {spec.family} model does not show it"
    notes = [
        f"{x} left out: "
        + (
            "a served model's weights stay on the server"
            if stay and x == "grafting"
            else asks_more.get(x, why)
        )
        for x in (*measures, *sites)
    ]
    if "interference" in kept["measures"] and away:
        notes.append("interference halfway left out: both checkpoints' weights aren't in one place")
    every = spec.layers * spec.heads
    if "grafting" in kept["measures"] and not spec.resident:
        where = "on a server" if away else "on the disk"
        notes.append(f"MLPs and the rest are not grafted: weights {where} are not lent")
    if "grafting" in kept["measures"] and study.graft_top == 0:
        notes.append("W_Q, W_K, W_V and W_O are not grafted one by one (--graft-top 0)")
    elif "grafting" in kept["measures"] and study.graft_top < every:
        notes.append(
            f"W_Q, W_K, W_V and W_O are grafted one by one for {study.graft_top} of {every} heads: "
            "those whose whole graft does most (--graft-top for more)"
        )
    return study.model_copy(update=kept), notes


def _too_few(pair: Inputs, new: Inputs | None) -> dict[str, str]:
    """Measures that need more prompts than there are -> what they lack."""
    found = {"readout": lacks_for_probes(pair.encoded)}
    distinct = [len(set(i.encoded.cluster.tolist())) for i in (pair, new) if i is not None]
    if distinct[0] < 2:
        found["sets"] = "needs two distinct prompts"
    if new is not None:
        found["interference"] = lacks_for_minibatches(pair.encoded, new.encoded)
        if min(distinct) < 2:
            found["similarity"] = "needs two distinct prompts of each task"
    return {name: lack for name, lack in found.items() if lack}


def _asks_more(study: Study, pair: Inputs) -> dict[str, str]:
    """Measures that need more than two models that can be run -> what they lack."""
    spec, away = pair.post.spec, study.backend == "remote"
    found: dict[str, str] = {}
    if study.new_task is None:
        found |= dict.fromkeys(("interference", "similarity"), "needs the new task: --new-task")
    stacked = not away and any(p.dim() > 2 for p in pair.post.module.parameters())
    if not spec.moe:
        on = " on this backend: use nnsight" if stacked else ", it is dense"
        found["routing"] = f"a {spec.family} model shows no mixture of experts{on}"
    if stacked and not spec.moe:
        of_experts = "this backend doesn't show which expert a weight is: use nnsight"
        found |= dict.fromkeys(("ledger", "interference"), of_experts)
    if away:
        both = "needs both checkpoints' weights in one place: run backend nnsight where they are"
        found |= dict.fromkeys(("ledger", "landscape", "weights"), both)
    elif not spec.resident:
        held = ("attribution", "interference", "ledger", "landscape")
        found |= dict.fromkeys(held, "needs gradients, and weights on the disk have none")
    wanted = [m for m in ("attribution", "interference") if m in study.measures and m not in found]
    if wanted and away:
        try:
            require_gradients(pair.post, pair.encoded)
        except MechforgetError as error:
            found |= dict.fromkeys(wanted, str(error))
    if "landscape" in study.measures and "landscape" not in found:
        try:
            require_curvature(pair.post)
        except SweepError as error:
            found["landscape"] = str(error)
    if not spec.sites.issuperset(("resid_pre", "resid_post", "z", "head_out")):
        found["drift"] = f"a {spec.family} model doesn't show all of its stream and heads"
    return found


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
