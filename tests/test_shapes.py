"""Shapes in signatures are checked wherever the tests run, and cost nothing anywhere else."""

import subprocess
import sys

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from mechforget import statistics
from mechforget.measures.attention_change import js
from mechforget.measures.drift import change
from mechforget.measures.readout import coded
from mechforget.measures.routing import angle, divergence
from mechforget.measures.spectra import overlap
from mechforget.measures.trajectory import trajectory
from mechforget.statistics.ridge import ridge

ones = np.ones


@pytest.mark.parametrize(
    "call",
    [
        lambda: statistics.interval(ones((3, 8)), np.arange(7)),
        lambda: statistics.rank(ones((3, 8)), np.arange(8)),
        lambda: statistics.sign_flip(ones((3, 8)), ones((8, 1))),
        lambda: statistics.rank(ones((3, 8)), ones(7, bool)),
        lambda: statistics.crossfit(ones(8), np.arange(8)),
        lambda: statistics.unbiased_cka(ones((8, 3)), ones((9, 3)), np.arange(8)),
        lambda: ridge(ones((8, 3)), ones((9, 2)), np.arange(8)),
        lambda: js(ones((2, 3)), ones((2, 4))),
        lambda: divergence(ones((2, 3)), ones((3,)), "softmax"),
        lambda: angle(ones((2, 3)), ones((3, 3))),
        lambda: overlap(ones((4, 2)), ones((5, 2))),
        lambda: trajectory(ones((2, 3))),
        lambda: change(ones((8, 3)), ones((8, 3)), np.arange(9)),
        lambda: coded(ones(3)),
    ],
)
def test_a_wrong_shape_fails(call):
    """Catches signatures that nothing checks, as those of types that are imported under
    TYPE_CHECKING only, and a hook that is installed after the package was imported."""
    with pytest.raises(TypeCheckError, match="Type-check error"):
        call()


def test_a_wrong_result_fails(monkeypatch):
    """Catches a hook that checks what goes in, and not what comes out."""
    monkeypatch.setattr("mechforget.statistics.clusters.np.divide", lambda *_, **__: ones(5))
    with pytest.raises(TypeCheckError, match="return value"):
        statistics.mean(ones((3, 8)))


def test_lists_and_single_numbers_pass():
    """Catches a check that asks for arrays where the function takes what numpy takes."""
    assert statistics.interval([1, 2], range(2)).estimate == 1.5
    assert statistics.mean([[1.0, 3.0], [2.0, 2.0]]).tolist() == [2.0, 2.0]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


def test_the_package_does_without_jaxtyping():
    """Catches an import of jaxtyping or of a name that only it has: a server, and a machine where
    tests aren't installed, needn't have it."""
    code = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jaxtyping", "beartype"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import mechforget
names = [m.name for m in pkgutil.walk_packages(mechforget.__path__, "mechforget.")]
for name in names:
    importlib.import_module(name)
from mechforget.statistics import mean
assert "jaxtyping" not in sys.modules
print(len(names), mean([[1, 2]])[0])
"""
    imported, mean = run(code).split()
    assert int(imported) > 100 and mean == "1.5"


def test_shapes_load_nothing():
    """Catches jaxtyping (0.1 s) loaded by every command, for checks that only tests make."""
    out = run("import sys, mechforget.statistics, mechforget.shapes; print(*sys.modules)")
    assert not {"jaxtyping", "beartype", "torch"} & set(out.split())
