"""The rows: which question, of which model, on how many prompts of which length."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import models, prompts
from benchmarks.models import GPT2, SMOL
from benchmarks.questions import changes, estimates, sweeps
from benchmarks.questions.question import Question
from benchmarks.scene import Scene


@dataclass(frozen=True)
class Case:
    """words: prompts of so many random words, that share nothing, instead of the task's. layers: of
    a random model. also: a second table that shows the row. seconds: about how long it takes on
    two cores, for the time left."""

    table: str
    ask: Callable[[Scene], Question]
    model: str = SMOL
    prompts: int = 16
    shots: int = 0
    words: int | None = None
    layers: int | None = None
    site: str = ""
    also: str = ""
    seconds: int = 60

    @property
    def key(self) -> str:
        """Its file's name."""
        more = {"prompts": self.prompts, "shots": self.shots, "words": self.words}
        more |= {"layers": self.layers}
        said = [f"{name}{value}" for name, value in more.items() if value is not None]
        return "-".join([self.table, self.site, self.model, *said]).replace(" ", "_")

    def scene(self, work: Path, device: str, *, quick: bool) -> Scene:
        """Opened by nobody yet."""
        layers = min(self.layers, 2) if quick and self.layers else self.layers
        folders = models.pair(self.model, work, quick=quick, layers=layers)
        tokenizer = models.tokenizer(folders[0])
        n = min(self.prompts, 8) if quick else self.prompts
        if self.words is None:
            task = prompts.task(n, self.shots, tokenizer)
        else:
            task = prompts.unshared(n, self.words, tokenizer)
        return Scene(folders, task, device, quick)


def _heads(site: str) -> Callable[[Scene], Question]:
    return partial(sweeps.heads, site=site)


HEADS, QKV, POSITIONS = "head sweep", "queries, keys and values", "positions and layers"
CURVES = BY_PROMPTS, BY_LENGTH, BY_LAYERS = "by prompts", "by length", "by layers"
few = sweeps.heads_beside_lens
CASES = [  # those of one model together, because it is open
    Case(HEADS, sweeps.heads, also=BY_PROMPTS, seconds=150),
    Case(HEADS, sweeps.heads, shots=2, seconds=180),
    Case(HEADS, sweeps.heads, shots=5, seconds=240),
    *(Case(QKV, _heads(site), site=site, seconds=90) for site in "qkv"),
    Case(POSITIONS, sweeps.positions, seconds=120),
    Case("attribution", estimates.attribution, seconds=40),
    Case("attribution", estimates.attribution, shots=5, seconds=70),
    Case("screen", estimates.screen, seconds=100),
    Case("drift", changes.drift, seconds=60),
    Case("ledger", changes.ledger, seconds=90),
    Case("curvature", changes.curvature, seconds=100),
    Case("weights", changes.weights, seconds=40),
    Case(BY_PROMPTS, few, prompts=4, seconds=40),
    Case(BY_PROMPTS, few, prompts=40, seconds=150),
    Case(HEADS, sweeps.heads, GPT2, also=BY_LAYERS, seconds=90),
    Case(POSITIONS, sweeps.positions, GPT2, seconds=70),
    Case("attribution", estimates.attribution, GPT2, seconds=20),
    *(Case(BY_LENGTH, few, GPT2, prompts=4, words=n, seconds=20 + n) for n in (8, 32, 96)),
    *(Case(BY_LAYERS, few, GPT2, layers=n, seconds=10 + 3 * n) for n in (3, 6)),
]
