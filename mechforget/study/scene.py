"""What these checkpoints and tasks can show: what a measure asks before it is run."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mechforget import checkpoints
from mechforget.errors import MeasureError, MechforgetError
from mechforget.models.sites import Spec
from mechforget.study.settings import Study
from mechforget.sweeps.gradients import require_gradients
from mechforget.sweeps.reads import prompt_tokens

if TYPE_CHECKING:
    from mechforget.measures import Inputs

BOTH = "needs both checkpoints' weights in one place: run backend nnsight where they are"
IN_MEMORY = "needs gradients, and weights on the disk have none"
NEW_TASK = "needs the new task: --new-task"


@dataclass(frozen=True)
class Scene:
    """A study, its pair of models on the old and on the new task, and the pairs' files."""

    study: Study
    pair: "Inputs"
    new: "Inputs | None" = None
    files: tuple[checkpoints.Pair, ...] = ()  # where weights are wanted on this machine
    uncorrupted: str = ""  # why there are no corrupted prompts

    @property
    def spec(self) -> Spec:
        return self.pair.post.spec

    @property
    def served(self) -> bool:
        """Whether the models run on a server."""
        return self.study.backend == "remote"

    def unseen(self, *sites: str) -> str:
        """Why these sites can't be used, or ""."""
        return "" if self.spec.sites.issuperset(sites) else no_such(self.spec)

    def unsplit(self) -> str:
        """Why the weights of experts can't be told apart, or ""."""
        if self.spec.moe or self.served:
            return ""
        if any(p.dim() > 2 for p in self.pair.post.module.parameters()):
            return "this backend doesn't show which expert a weight is: use nnsight"
        return ""

    @cached_property
    def no_gradients(self) -> str:
        """Why activations have no gradients, or ""; a server is asked once."""
        if not self.served:
            return "" if self.spec.resident else IN_MEMORY
        try:
            require_gradients(self.pair.post, self.pair.encoded)
        except MechforgetError as error:
            return str(error)
        return ""

    @property
    def fewest(self) -> int:
        """Distinct prompts of the task that has fewer."""
        both = [i for i in (self.pair, self.new) if i is not None]
        return min(len(set(i.encoded.cluster.tolist())) for i in both)


def no_such(spec: Spec) -> str:
    return f"a {spec.family} model does not show it"


def too_short(inputs: "Inputs") -> str:
    """Why prompts have no token but the first, or ""."""
    try:
        prompt_tokens(inputs.encoded)
    except MeasureError as error:
        return str(error)
    return ""
