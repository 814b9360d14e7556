"""The jobs of a study, and their order."""

from typing import Any

import pytest

from mechforget.models.sites import ACTIVATIONS, MATRICES, Spec
from mechforget.study.catalogue import early, names
from mechforget.study.jobs import jobs
from mechforget.study.settings import study

SPEC = Spec("llama", 3, 4, 2, 32, 400, frozenset({*ACTIVATIONS, *MATRICES}), 1.0, 4, (0, 2))


def of(**given: Any) -> list[str]:
    asked = study(pre="a", post="b", task="t", **given)
    return [job.name for job in jobs(asked, SPEC, 16, 8)]


@pytest.mark.parametrize("given", [{}, {"screen": 3}, {"new_task": "n", "control_twin": "c"}])
def test_what_reads_a_result_comes_after_it(given):
    """Catches a set of heads that is ranked, or a screen that is drawn, before its numbers exist;
    a result that is made twice; a verdict that has to wait for a measure that it doesn't read."""
    asked = study(pre="a", post="b", task="t", measures=names(), **given)
    found = jobs(asked, SPEC, 16, 8)
    order = [job.name for job in found]
    assert len(set(order)) == len(order) and order[0] == "forgetting"
    for job in found:
        assert all(order.index(name) < order.index(job.name) for name in job.after), job.name
    assert ("patching/z" in order) and ("attribution/z" in order)
    if "screen" in given:
        assert order.index("attribution/z") < order.index("patching/z")
    first = sum(name in early() for name in order)
    assert set(order[:first]) == early().intersection(order)
    for part in (found[:first], found[first:]):
        blocks = [j.blocks(SPEC.layers) for j in part if not j.after]
        assert blocks == sorted(blocks)


def test_the_verdict_of_a_default_study_comes_first():
    """Catches an early result that no job makes, and a first map that comes after the exact one: of
    a model of SmolLM2's size, whose heads take much longer to patch one by one."""
    large = Spec("llama", 30, 9, 3, 576, 49152, SPEC.sites, 1.0, 64, (0, 2))
    asked = study(pre="a", post="b", task="t", control_twin="c", control_old="d", new_task="n")
    order = [job.name for job in jobs(asked, large, 40, 10)]
    assert order[:7] == [
        *("forgetting", "attribution/head_out", "patching/head_out", "sets"),
        *("control_twin/patching/head_out", "control_old/patching/head_out", "grafting/all"),
    ]
    assert set(order[:7]) == early() and order[7:9] == ["patterns", "forgetting_new"]


def test_a_study_has_the_jobs_of_its_measures_and_no_others():
    """Catches a measure that is planned and silently not run, and one that nobody asked for."""
    assert of(measures=("forgetting",)) == ["forgetting"]
    assert of(measures=("weights",)) == ["forgetting", "weights"]
    assert of(measures=("drift",), new_task="n")[:2] == ["forgetting", "forgetting_new"]
    assert set(of(measures=("patching", "sets"), sites=("head_out", "mlp_out"))) == {
        *("patching/head_out", "patching/mlp_out", "sets", "forgetting")
    }
    twin = study(pre="a", post="b", task="t", control_twin="c", measures=("patching", "drift"))
    controlled = [job for job in jobs(twin, SPEC, 16, 8) if job.name.startswith("control_")]
    assert {job.name for job in controlled} == {
        *("control_twin/patching/z", "control_twin/patching/head_out", "control_twin/drift")
    }
    assert all(job.once for job in controlled)
