"""What a study says of what it leaves out."""

from types import SimpleNamespace
from typing import Any

import pytest

from mechforget.errors import StudyError
from mechforget.models.sites import ACTIVATIONS, MATRICES, Spec
from mechforget.planning.scan import placeholders
from mechforget.study import scene
from mechforget.study.available import available, lacking
from mechforget.study.scene import Scene
from mechforget.study.settings import study

WEIGHTS = "a served model's weights stay on the server"


def model(sites: set[str], url: str | None) -> Any:
    spec = Spec("llama", 3, 4, 2, 32, 400, frozenset(sites), 1.0, resident=url is None)
    made: dict[str, Any] = {"spec": spec, "proofs": (), "serves": lambda layer, name: name in sites}
    made["module"] = SimpleNamespace(parameters=lambda: (), config=None)
    if url is not None:
        made |= {"ask": None, "own": False, "url": url, "adapter": None, "deployment": url}
    return SimpleNamespace(**made)


def notes(sites: set[str], *urls: str | None, prompts: int = 20, **given: Any) -> list[str]:
    pre, post = (model(sites, url) for url in urls)
    pair: Any = SimpleNamespace(pre=pre, post=post, encoded=placeholders(400, prompts, 5))
    if urls[1] is not None:
        given |= {"backend": "remote"}
    asked = study(pre="a", post="b", task="t", **given)
    return available(asked, post.spec, lacking(Scene(asked, pair)))[1]


@pytest.fixture(autouse=True)
def _any_server_gives_gradients(monkeypatch):
    monkeypatch.setattr(scene, "require_gradients", lambda model, encoded: None)


@pytest.mark.parametrize("url", ["http://a", None])
def test_what_is_left_out_is_given_its_own_reason(url):
    """Catches weights on a server blamed for a pattern that no copy of the model would show."""
    every = {*ACTIVATIONS, *MATRICES}
    said = notes(every - {"pattern"}, url, url and "http://b")
    assert "attention_change left out: a llama model does not show it" in said
    assert (f"grafting left out: {WEIGHTS}" in said) == (url is not None)
    said = notes(every - set(MATRICES), url, url and "http://b")
    assert "grafting left out: a llama model does not show it" in said


def test_no_single_matrices_are_no_heads_of_270():
    """Catches a way to more that is given beside `0 of 12 heads` to whom asked for none."""
    every = {*ACTIVATIONS, *MATRICES}
    assert notes(every, None, None, graft_top=0, measures=("grafting",)) == [
        "W_Q, W_K, W_V and W_O are not grafted one by one (--graft-top 0)"
    ]
    (few,) = notes(every, None, None, graft_top=5, measures=("grafting",))
    assert "5 of 12 heads" in few
    assert notes(every, None, None, graft_top=12, measures=("grafting",)) == []


def test_what_needs_more_says_what():
    """Catches a measure that was asked for by name and silently dropped, and defaults that stop a
    run which could go on without them."""
    every = {*ACTIVATIONS, *MATRICES} - {"router", "expert_out"}
    said = "; ".join(notes(every, None, None))
    for name, why in (
        ("interference", "needs the new task: --new-task"),
        ("similarity", "needs the new task: --new-task"),
        ("routing", "a llama model shows no mixture of experts, it is dense"),
    ):
        assert f"{name} left out: {why}" in said
        with pytest.raises(StudyError, match=why.split(":")[0]):
            notes(every, None, None, measures=(name,))
    few = notes(every, None, None, prompts=1)
    for name, why in (("readout", "1 distinct prompts"), ("sets", "needs two distinct prompts")):
        assert f"{name} left out: {why}" in "; ".join(few) and f"{name} left" not in said
    away = "; ".join(notes(every, "http://a", "http://b"))
    for name in ("ledger", "weights"):
        assert f"{name} left out: needs both checkpoints' weights in one place" in away
    assert "landscape" in study(pre="a", post="b", task="t", measures=("all",)).measures
    with pytest.raises(StudyError, match="screen needs attribution"):
        study(pre="a", post="b", task="t", measures=("patching",), screen=8)
