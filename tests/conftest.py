"""Fixtures that every room may use."""

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import torch

from tests import shapes

shapes.install()
hypothesis.settings.register_profile("any machine", deadline=None)  # under load all takes longer
hypothesis.settings.load_profile("any machine")
torch.set_num_threads(1)  # tiny models: a second thread costs more than it gives


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, the real model, as a float32 safetensors folder. From the user's
    cache; the first time on a machine this downloads 93 MB and converts them (a minute)."""
    from mechforget.checkpoints import smollm2

    return smollm2.fetch()


@pytest.fixture
def unchecked_shapes() -> Iterator[None]:
    """For tests of how a function itself refuses a wrong shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """With several workers a file stays whole, for its fixtures, and all that needs the real server
    goes to one worker, so that one is started."""
    for item in items:
        served = "server" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("server" if served else item.nodeid.split("::")[0]))
