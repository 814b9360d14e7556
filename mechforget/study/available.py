"""Which measures of a study these checkpoints and tasks can support, and why not the others."""

from collections.abc import Mapping

from mechforget.errors import StudyError
from mechforget.models.sites import Spec
from mechforget.study.catalogue import chosen, defaults, load, names
from mechforget.study.job import Scope
from mechforget.study.scene import Scene, no_such
from mechforget.study.settings import SITES, Study


def lacking(scene: Scene) -> dict[str, str]:
    """Maps each measure that cannot be made to the reason, whether the study asks for it or not."""
    found = {entry.name: load(entry.lacks)(scene) for entry in chosen(names()) if entry.lacks}
    return {name: why for name, why in found.items() if why}


def available(study: Study, spec: Spec, lacks: Mapping[str, str]) -> tuple[Study, list[str]]:
    """Returns the study without the measures in `lacks` and without the sites that the model does
    not have, and notes that say what was left out and why.

    Raises: StudyError: one of them was asked for by name.
    """
    measures = [m for m in study.measures if m in lacks]
    sites = [site for site in study.sites if site not in spec.sites]
    why = {**dict.fromkeys(sites, no_such(spec)), **lacks}
    named = [m for m in measures if study.measures not in (defaults(), names())]
    named += [site for site in sites if study.sites != SITES]
    if named:
        raise StudyError("; ".join(f"{x}: {why[x]}: leave it out" for x in named))
    for entry in chosen(tuple(measures)):
        if options := [o for o in entry.options if getattr(study, o) is not None]:
            raise StudyError(
                f"{options[0]}: no {entry.name} ({lacks[entry.name]}): leave --{options[0]} out"
            )
    kept = {
        "measures": tuple(m for m in study.measures if m not in measures),
        "sites": tuple(site for site in study.sites if site not in sites),
    }
    notes = [f"{x} left out: {why[x]}" for x in (*measures, *sites)]
    scope = Scope(study, spec, 0, 0)
    for entry in chosen(kept["measures"]):
        notes += load(entry.notes)(scope) if entry.notes else []
    return study.model_copy(update=kept), notes
