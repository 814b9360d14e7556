"""What every measure works on: two open models, the task's tokens, and where chunks are kept."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Any

from mechforget import models
from mechforget.checkpoints import Checkpoint, Pair, Sequence
from mechforget.errors import MeasureError
from mechforget.measures.explained import UNITS as UNITS
from mechforget.measures.explained import kept, settings_text
from mechforget.measures.neutral_text import Neutral, neutral
from mechforget.models.protocol import Model
from mechforget.sweeps import MEMORY
from mechforget.sweeps.chunks import Chunk, Keep, over_prompts

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.tasks import Encoded, Task

METRICS = ("log_prob", "logit_diff", "correct")
DIRECTIONS = ("restore", "break")


@dataclass(frozen=True)
class Inputs:
    """A pair of models opened on one task."""

    pre: Model
    post: Model
    encoded: "Encoded"
    corrupted: "Encoded | None" = None  # the token-aligned counterpart of each prompt
    memory: float = MEMORY
    keep: Callable[[str], Keep] | None = None  # a measure's name -> where its chunks are kept
    neutral: Neutral | None = None  # text that isn't the task's

    @classmethod
    def of(
        cls,
        pair: Pair,
        task: "Task",
        *,
        loading: models.Loading = models.DEFAULT,
        memory: float = MEMORY,
        keep: Callable[[str], Keep] | None = None,
    ) -> "Inputs":
        pair.check()
        tokenizer = pair.pre.tokenizer()
        encoded = task.encode(tokenizer)
        corrupted = None
        if "corrupted" in task.rows.columns and bool(task.rows["corrupted"].notna().any()):
            corrupted = _counterpart(task, tokenizer, encoded)
        pre, post = (models.open(c, loading) for c in (pair.pre, pair.post))
        _fits(pair.pre, encoded)
        return cls(pre, post, encoded, corrupted, memory, keep, neutral(tokenizer))

    def over_prompts(
        self,
        name: str,
        measure: "Callable[[Chunk], xr.Dataset]",
        *,
        variants: int,
        encoded: "Encoded | None" = None,
    ) -> "xr.Dataset":
        """`over_prompts` with this pair's budget, progress label and store."""
        return over_prompts(
            self.encoded if encoded is None else encoded,
            measure,
            spec=self.post.spec,
            variants=variants,
            label=name,
            memory=self.memory,
            keep=self.keep(name) if self.keep else None,
        )

    def with_encoded(self, encoded: "Encoded") -> "Inputs":
        return replace(self, encoded=encoded)


def _counterpart(task: "Task", tokenizer: Any, encoded: "Encoded") -> "Encoded":
    """The corrupted prompts with the clean prompts' answers, aligned token by token. A prompt whose
    counterpart has another number of tokens stands for itself: it has none."""
    from mechforget.tasks import Task

    def size(text: str) -> int:
        return len(tokenizer(text, verbose=False)["input_ids"])

    rows = task.rows.copy()
    rows["prompt"] = [
        corrupted if isinstance(corrupted, str) and size(corrupted) == size(clean) else clean
        for clean, corrupted in zip(rows["prompt"], rows["corrupted"], strict=True)
    ]
    corrupted = Task(task.name, rows, task.source).encode(tokenizer)
    if corrupted.ids.shape != encoded.ids.shape or (
        corrupted.prompt_length.tolist() != encoded.prompt_length.tolist()
    ):
        raise MeasureError(
            "clean and corrupted prompts put their answers at other places: want pairs that differ "
            "in the subject only (task.counterparts(tokenizer) makes them)"
        )
    return corrupted


def _fits(checkpoint: Checkpoint, encoded: "Encoded") -> None:
    limit = getattr(checkpoint.config, "max_position_embeddings", None) or encoded.ids.shape[1]
    if encoded.ids.shape[1] > limit:
        raise MeasureError(
            f"the longest prompt has {encoded.ids.shape[1]} tokens, "
            f"{checkpoint.ref} takes {limit}: "
            "shorten the prompts or use fewer few-shot examples"
        )


def measure(fn: "Callable[..., xr.Dataset]") -> "Callable[..., xr.Dataset]":
    """Lets fn(inputs, **settings) be called as fn(pair or sequence, task, **settings) too.

    A sequence θ₀ … θ_T is measured as its pairs (θ₀, θ_t), joined along `checkpoint` = t. The
    result gets the attributes `measure` and `settings` (see `explained.settings_text`).
    """

    @wraps(fn)
    def public(subject: Pair | Sequence | Inputs, task: "Task | None" = None, **settings: Any):
        import xarray as xr

        settings = kept(settings)
        said = {"measure": fn.__name__, "settings": settings_text(fn, settings)}
        if isinstance(subject, Inputs):
            return fn(subject, **settings).assign_attrs(said)
        if not isinstance(subject, Pair | Sequence):
            raise MeasureError(
                f"{fn.__name__}: got {type(subject).__name__}, want a Pair or a Sequence"
            )
        if task is None:
            raise MeasureError(f"{fn.__name__}(pair, task): the task is missing")
        first = subject.pre if isinstance(subject, Pair) else subject.checkpoints[0]
        settings = {k: _encoded(v, first) for k, v in settings.items()}
        if isinstance(subject, Pair):
            found = fn(Inputs.of(subject, task), **settings)
        else:
            subject.check()
            each = [fn(Inputs.of(pair, task), **settings) for pair in subject.pairs()]
            found = xr.concat(each, "checkpoint", join="exact").assign_coords(
                checkpoint=range(1, len(each) + 1)
            )
        return found.assign_attrs(said, task=task.source)

    return public


def _encoded(value: Any, checkpoint: Checkpoint) -> Any:
    """A setting that is a task, as the checkpoint's tokens; any other as it is."""
    from mechforget.tasks import Task

    return value.encode(checkpoint.tokenizer()) if isinstance(value, Task) else value
