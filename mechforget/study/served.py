"""What of a study these checkpoints and tasks can show, and why not the rest."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mechforget.errors import MeasureError, MechforgetError, StudyError, SweepError
from mechforget.measures.attention_change import readable
from mechforget.measures.interference import lacks_for_minibatches
from mechforget.measures.readout import lacks_for_probes
from mechforget.models.beside import reads_weights
from mechforget.models.sites import MATRICES, Spec
from mechforget.study.settings import DEFAULT, MEASURES, SITES, Study
from mechforget.sweeps.curvature import require_curvature
from mechforget.sweeps.gradients import require_gradients
from mechforget.sweeps.reads import prompt_tokens

if TYPE_CHECKING:
    from mechforget.measures import Inputs


def lacking(study: Study, pair: "Inputs", new: "Inputs | None" = None) -> dict[str, str]:
    """Measures that can't be had -> why; of all, whether the study names them or not."""
    found: dict[str, str] = {}
    for some in (_too_few(pair, new), _unseen(study, pair), _asks_more(study, pair)):
        found |= {name: why for name, why in some.items() if why}
    return found


def served(study: Study, spec: Spec, lacks: Mapping[str, str]) -> tuple[Study, list[str]]:
    """The study without these measures, and without sites that the model hasn't; and what is left
    out and why.

    Raises: StudyError: it was asked for by name.
    """
    measures = [m for m in study.measures if m in lacks]
    sites = [site for site in study.sites if site not in spec.sites]
    why = {**dict.fromkeys(sites, _no_such(spec)), **lacks}
    named = [m for m in measures if study.measures not in (DEFAULT, MEASURES)]
    named += [site for site in sites if study.sites != SITES]
    if named:
        raise StudyError("; ".join(f"{x}: {why[x]}: leave it out" for x in named))
    if study.screen is not None and "attribution" in lacks:
        raise StudyError(f"screen: no attribution ({lacks['attribution']}): leave --screen out")
    kept = {
        "measures": tuple(m for m in study.measures if m not in measures),
        "sites": tuple(site for site in study.sites if site not in sites),
    }
    notes = [f"{x} left out: {why[x]}" for x in (*measures, *sites)]
    return study.model_copy(update=kept), [*notes, *_in_part(study, kept["measures"], spec)]


def _in_part(study: Study, measures: tuple[str, ...], spec: Spec) -> list[str]:
    """What is left out of a measure that is made."""
    notes, away, every = [], study.backend == "remote", spec.layers * spec.heads
    if "interference" in measures and away:
        notes.append("interference halfway left out: both checkpoints' weights aren't in one place")
    if "grafting" not in measures:
        return notes
    if not spec.resident:
        where = "on a server" if away else "on the disk"
        parts = "MLPs, experts," if away and "expert_out" in study.sites else "MLPs,"
        notes.append(
            f"{parts} whole layers and the rest are not grafted: weights {where} are not lent"
        )
    if study.graft_top == 0:
        notes.append("W_Q, W_K, W_V and W_O are not grafted one by one (--graft-top 0)")
    elif study.graft_top < every:
        notes.append(
            f"W_Q, W_K, W_V and W_O are grafted one by one for {study.graft_top} of {every} heads: "
            "those whose whole graft does most (--graft-top for more)"
        )
    return notes


def _no_such(spec: Spec) -> str:
    return f"a {spec.family} model does not show it"


def _unseen(study: Study, pair: "Inputs") -> dict[str, str]:
    """Measures of what this architecture, or this backend, doesn't show."""
    spec = pair.post.spec
    shown = {
        "attention_change": readable(pair),
        "logit_attribution": spec.residual_scale is not None,
        "grafting": spec.sites.issuperset(MATRICES),
        "drift": spec.sites.issuperset(("resid_pre", "resid_post", "z", "head_out")),
        "sets": "head_out" in spec.sites,
        "clean_corrupt": "z" in spec.sites,
        "patching_positions": "resid_pre" in spec.sites,
    }
    found = dict.fromkeys((name for name, seen in shown.items() if not seen), _no_such(spec))
    if shown["grafting"] and not (
        reads_weights(pair.post, pair.pre) and reads_weights(pair.pre, pair.post)
    ):
        found["grafting"] = "a served model's weights stay on the server"
    return found


def _too_few(pair: "Inputs", new: "Inputs | None") -> dict[str, str]:
    """Measures that need more, or longer, prompts than there are -> what they lack."""
    short = _no_second_token(pair)
    found = {"readout": lacks_for_probes(pair.encoded) or short, "drift": short}
    distinct = [len(set(i.encoded.cluster.tolist())) for i in (pair, new) if i is not None]
    if distinct[0] < 2:
        found["sets"] = "needs two distinct prompts"
    if new is not None:
        found["interference"] = lacks_for_minibatches(pair.encoded, new.encoded)
        few = "needs two distinct prompts of each task" * (min(distinct) < 2)
        found["similarity"] = few or short or _no_second_token(new)
    return found


def _no_second_token(inputs: "Inputs") -> str:
    try:
        prompt_tokens(inputs.encoded)
    except MeasureError as error:
        return str(error)
    return ""


def _asks_more(study: Study, pair: "Inputs") -> dict[str, str]:
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
        try:
            require_gradients(pair.post, pair.encoded)
        except MechforgetError as error:
            found = dict.fromkeys(("attribution", "interference"), str(error)) | found
    elif not spec.resident:
        held = ("attribution", "interference", "ledger", "landscape")
        found |= dict.fromkeys(held, "needs gradients, and weights on the disk have none")
    else:
        try:
            require_curvature(pair.post)
        except SweepError as error:
            found["landscape"] = str(error)
    return found
