"""What a measure asks about the checkpoints and tasks before it is run."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from mechforget import checkpoints
from mechforget.errors import MeasureError, MechforgetError
from mechforget.models.proof import CALLED
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
    """A study, its models on the old and on the new task, and the files of its pairs."""

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
        """Why one of these sites cannot be used, or an empty string."""
        return "" if self.spec.sites.issuperset(sites) else no_such(self.spec)

    def unsplit(self) -> str:
        """Why the weights of single experts cannot be told apart, or an empty string."""
        if self.spec.moe:
            return ""
        if any(proof.name == CALLED and not proof.passed for proof in self.pair.post.proofs):
            return "its experts are called in a way that isn't known here"
        if self.served:
            return ""
        if any(p.dim() > 2 for p in self.pair.post.module.parameters()):
            return "this backend doesn't show which expert a weight is: use nnsight"
        return ""

    @cached_property
    def no_gradients(self) -> str:
        """Why activations have no gradients, or an empty string. A server is asked only once."""
        if not self.served:
            return "" if self.spec.resident else IN_MEMORY
        try:
            require_gradients(self.pair.post, self.pair.encoded)
        except MechforgetError as error:
            return str(error)
        return ""

    @property
    def fewest(self) -> int:
        """The number of distinct prompts, in the task that has fewer."""
        both = [i for i in (self.pair, self.new) if i is not None]
        return min(len(set(i.encoded.cluster.tolist())) for i in both)


def no_such(spec: Spec) -> str:
    return f"a {spec.family} model does not show it"


def too_short(inputs: "Inputs") -> str:
    """Why the prompts have no token but the first, or an empty string."""
    try:
        prompt_tokens(inputs.encoded)
    except MeasureError as error:
        return str(error)
    return ""
