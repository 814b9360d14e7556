"""Adapters on the deployment of their base against merged models here: a real server."""

import numpy as np
import pytest
import torch

from mechforget import checkpoints, models
from mechforget.errors import ModelError, SweepError
from mechforget.measures.inputs import Inputs
from mechforget.models import beside, remote
from mechforget.models.opening import Loading
from mechforget.models.sites import ACTIVATIONS, EXPERT
from mechforget.study.available import available, lacking
from mechforget.study.jobs import jobs
from mechforget.study.scene import Scene
from mechforget.study.settings import Study
from mechforget.sweeps.donor import Donor
from mechforget.sweeps.plan import graft, single
from mechforget.sweeps.run import sweep
from tests.remote.server import server  # noqa: F401 (a fixture)
from tests.sweeps.test_run import encoded
from tests.tiny import save_adapter

SITES = [site for site in ACTIVATIONS if site not in EXPERT]


@pytest.fixture(autouse=True)
def _fresh():
    models.opening._open.clear()


@pytest.fixture
def asks(monkeypatch):
    """Every question that is sent: (who is asked, what)."""
    found, send = [], remote.Remote._send

    def noted(self, question, key):
        found.append((self, question))
        return send(self, question, key)

    monkeypatch.setattr(remote.Remote, "_send", noted)
    return found


def served(server, *folders):  # noqa: F811
    loading = Loading("remote", server=server.url)
    return [models.open(checkpoints.open(folder), loading) for folder in folders]


def compare(there, here, variants, batch, other):
    """The sweep of a pair on the server is that of merged models here; what the donor gives."""
    log_prob, top = sweep(there[1], batch, Donor.of(there[0], other, variants), variants)
    want = sweep(here[1], batch, Donor.of(here[0], other, variants), variants)
    np.testing.assert_allclose(log_prob, want[0], atol=1e-5)
    np.testing.assert_array_equal(top, want[1])
    assert abs(log_prob[1:] - log_prob[0]).max() > 1e-3


@pytest.mark.parametrize("pair", ["base to adapter", "adapter to base", "adapter to adapter"])
def test_a_pair_on_one_deployment_is_the_merged_pair_here(server, asks, pair):  # noqa: F811
    """Catches a donor that wears the recipient's adapter, or nothing, or travels; dropout."""
    folders = {
        "base to adapter": (server.pre, server.adapter),
        "adapter to base": (server.adapter, server.pre),
        "adapter to adapter": (server.other, server.adapter),
    }[pair]
    there = served(server, *folders)
    here = [models.open(checkpoints.open(folder)) for folder in folders]
    assert {site for site in SITES if site not in there[1].spec.sites} == set()
    batch, other = encoded(0), encoded(7)
    asks.clear()
    for site in SITES:
        compare(there, here, single(there[1].spec, site), batch, other)
    matrices = ("W_Q", "W_K", "W_V", "W_O", "all")
    cells = [(layer, head, m) for layer in range(3) for head in (0, 3) for m in matrices]
    compare(there, here, [graft(there[1].spec, *cell) for cell in cells], batch, other)
    assert [model for model, _ in asks] == [there[1]] * (len(SITES) + 1)
    for _, question in asks:
        assert max(t.numel() for t in tensors(question)) < 40  # ids, and where they are read


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [t for one in value for t in tensors(one)]
    if isinstance(value, dict):
        return tensors(list(value.values()))
    return []


def test_a_donor_of_another_deployment_brings_its_values(server, asks):  # noqa: F811
    """Catches a model of another base taken for a neighbour, and its weights for lendable."""
    there = served(server, server.post, server.adapter)
    here = [models.open(checkpoints.open(f)) for f in (server.post, server.adapter)]
    assert not beside.together(*there)
    asks.clear()
    compare(there, here, single(there[1].spec, "head_out"), encoded(0), encoded(7))
    assert [model for model, _ in asks] == there
    variants = [graft(there[1].spec, 0, 1, "all")]
    with pytest.raises((ModelError, SweepError), match="only where both checkpoints are"):
        sweep(there[0], encoded(0), Donor.of(there[1], encoded(0), variants), variants)


def test_what_a_study_grafts(server):  # noqa: F811
    """Catches grafting left out where it is possible, or begun where it isn't."""
    study = Study(pre=str(server.pre), post=str(server.adapter), task="t", backend="remote")
    both = served(server, server.pre, server.adapter)
    pair = Inputs(*both, encoded(0))
    found, notes = available(study, pair.post.spec, lacking(Scene(study, pair)))
    assert "grafting" in found.measures
    assert (
        "MLPs, whole layers and the rest are not grafted: weights on a server are not lent" in notes
    )
    names = [job.name for job in jobs(found, pair.post.spec, *pair.encoded.ids.shape)]
    assert "grafting/all" in names and "grafting/modules" not in names
    apart = served(server, server.post, server.adapter)
    assert "grafting" in lacking(Scene(study, Inputs(*apart, encoded(0))))


def test_an_adapter_that_was_not_named_at_the_start(server, tmp_path):  # noqa: F811
    """Catches one that is loaded all the same, and a line that doesn't say the way out."""
    adapter = save_adapter(tmp_path / "another", server.pre, seed=3)
    with pytest.raises(ModelError, match=f"isn't served with {server.pre}, only: ") as caught:
        served(server, adapter)
    assert "\n" not in str(caught.value)
    assert "Start the server with it to add it, or merge it (load()," in str(caught.value)


def test_hosted_ndif_has_no_adapters_of_ours(server, monkeypatch):  # noqa: F811
    """Catches a path of this machine that is sent to strangers."""
    monkeypatch.setenv("NDIF_API_KEY", "key")
    with pytest.raises(
        ModelError, match=r"serve it with its base \(python -m remote\.serve .* --ser"
    ):
        models.open(checkpoints.open(server.adapter), Loading("remote"))
