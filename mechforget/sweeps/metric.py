"""A metric of one's own: a function from the logits that are read to a number for each prompt."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mechforget.errors import MeasureError
from mechforget.models.beside import is_served

if TYPE_CHECKING:
    from torch import Tensor

    Function = Callable[[Tensor, "Reads"], Tensor]  # logits [read, vocabulary] -> [prompt]

    from mechforget.models.protocol import Model
    from mechforget.tasks.encoded import Encoded

BUILT_IN = ("log_prob", "logit_diff", "correct", "preferred")
RTOL, ATOL = 1e-3, 1e-4  # float32, and sums in another order


@dataclass(frozen=True)
class Reads:
    """What the logits were read for: one entry a read, each a tensor [read] where the logits are.

    A read is one token of a right or wrong answer, and the logits that predict it.
    """

    prompt: "Tensor"  # the prompt's number, 0 to n_prompts - 1
    target: "Tensor"  # the token's id
    wrong: "Tensor"  # bool: the token belongs to the wrong answer
    position: "Tensor"  # the token's place in its answer: 0, 1, ...
    n_prompts: int

    @classmethod
    def of(cls, encoded: "Encoded", device: Any) -> "Reads":
        import torch

        place = encoded.read_position - (encoded.prompt_length[encoded.read_row] - 1)
        arrays = (encoded.read_prompt, encoded.read_target, encoded.read_wrong, place)
        prompt, target, wrong, position = (torch.as_tensor(x, device=device) for x in arrays)
        return cls(prompt, target, wrong, position, encoded.n_prompts)

    def sum(self, values: "Tensor") -> "Tensor":
        """values [read], added up for each prompt: [prompt]."""
        return values.new_zeros(self.n_prompts).index_add(0, self.prompt, values)

    def first_prompt(self) -> "tuple[Tensor, Reads]":
        """Which reads are the first prompt's [read], and these alone."""
        mine = self.prompt == 0
        own = (x[mine] for x in (self.prompt, self.target, self.wrong, self.position))
        prompt, target, wrong, position = own
        return mine, Reads(prompt, target, wrong, position, 1)


@dataclass(frozen=True)
class Metric:
    """A function with the name and units that results give it."""

    function: "Function"
    name: str
    units: str

    @classmethod
    def of(cls, function: Any, *models: "Model") -> "Metric | None":
        """function(logits, reads): logits [read, vocabulary], float32; returns [prompt]. Its
        `__name__` names the metric, its attribute `units`, if it has one, says its units. None: no
        metric of one's own.

        Raises: MeasureError: no function, one without a name or with a built-in metric's, or a
            model on a server, to which no function is sent.
        """
        if function is None:
            return None
        name = getattr(function, "__name__", "<lambda>")
        if not callable(function):
            raise MeasureError(
                f"metric {function!r:.60}: want a function of (logits, reads); log_prob, "
                "logit_diff and correct are measured anyway"
            )
        if not name.isidentifier() or name in BUILT_IN:
            raise MeasureError(
                f"metric {name}: it names its results: want a function with a name of its own "
                f"(def ...), other than {', '.join(BUILT_IN)}"
            )
        if any(is_served(model) for model in models):
            raise MeasureError(
                f"metric {name}: a Python function is not sent to a server: use backend "
                "transformer_lens or nnsight, or leave it out"
            )
        own: Any = function
        return cls(own, name, str(getattr(function, "units", "1")))

    def values(self, logits: "Tensor", reads: Reads) -> "Tensor":
        """[prompt], of logits [read, vocabulary].

        Raises: MeasureError: the function gave something else.
        """
        import torch

        found = self.function(logits.float(), reads)
        if not isinstance(found, torch.Tensor) or found.shape != (reads.n_prompts,):
            gave = tuple(found.shape) if hasattr(found, "shape") else type(found).__name__
            raise MeasureError(
                f"metric {self.name} gave {gave}: want a tensor [prompt], here "
                f"({reads.n_prompts},), e.g. reads.sum(values) of values [read]"
            )
        return found

    def check_alone(self, logits: "Tensor", reads: Reads, among: "Tensor") -> None:
        """Whether the first prompt has the same number without the others: prompts are measured in
        chunks, and a gradient is shared out by prompt.

        Raises: MeasureError: it hasn't.
        """
        mine, alone = reads.first_prompt()
        one = self.values(logits.detach()[mine], alone).detach()[0].item()
        other = among.detach()[0].item()
        if not np.isclose(one, other, RTOL, ATOL, equal_nan=True):
            raise MeasureError(
                f"metric {self.name}: the first prompt's number is {one:.4g} alone and "
                f"{other:.4g} among {reads.n_prompts} prompts: compute each prompt's from its own "
                "reads only"
            )

    def each(self, logits: "Tensor", which: "Tensor", encoded: "Encoded") -> np.ndarray:
        """[slot, prompt], of logits [slot, position that is read, vocabulary]; which: the position
        of each read. One slot at a time: reads that share a position need it twice."""
        import torch

        reads = Reads.of(encoded, logits.device)
        found = [self.values(slot[which], reads) for slot in logits]
        self.check_alone(logits[0, which], reads, found[0])
        return torch.stack(found).cpu().double().numpy()
