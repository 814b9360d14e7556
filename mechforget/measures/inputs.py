"""What every measure works on: two open models, the task's tokens, and where chunks are kept."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any

from mechforget import models
from mechforget.checkpoints import Checkpoint, Pair, Sequence
from mechforget.errors import MeasureError
from mechforget.measures.explained import UNITS as UNITS
from mechforget.measures.explained import kept, settings_text
from mechforget.measures.neutral_text import Neutral, neutral
from mechforget.measures.running import NAMES, Running, running, use
from mechforget.models.protocol import Model
from mechforget.sweeps import MEMORY
from mechforget.sweeps.chunks import Chunk, Keep, over_prompts, suitable_memory
from mechforget.sweeps.metric import Metric

if TYPE_CHECKING:
    import xarray as xr

    from mechforget.tasks import Encoded, Task

METRICS = ("log_prob", "logit_diff", "correct")
DIRECTIONS = ("restore", "break")


def metric_names(own: Metric | None) -> tuple[str, ...]:
    """What effects are measured in: the built-in metrics, and one's own."""
    return METRICS if own is None else (*METRICS, own.name)


def metric_coords(own: Metric | None, built_in: Iterable[str] = METRICS) -> dict[str, Any]:
    """The coordinates of the axis `metric`; with a metric of one's own also the unit of each."""
    names = list(built_in)
    if own is None:
        return {"metric": names}
    units = [*(UNITS[name] for name in names), own.units]
    return {"metric": [*names, own.name], "unit": ("metric", units)}


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
        loading: models.Loading | None = None,
        memory: float | None = None,
        keep: Callable[[str], Keep] | None = None,
    ) -> "Inputs":
        """Both models opened, once for several measures. loading, memory: None is what `use` said.

        Raises: CheckpointError: no pair. ModelError: they can't be run like this. TaskError,
            MeasureError: prompts that these models can't be given.
        """
        loading = running().loading if loading is None else loading
        memory = use().memory if memory is None else memory
        pair.check()
        tokenizer = pair.pre.tokenizer()
        encoded = task.encode(tokenizer)
        corrupted = None
        if "corrupted" in task.rows.columns and bool(task.rows["corrupted"].notna().any()):
            corrupted = _counterpart(task, tokenizer, encoded)
        pre, post = (models.open(c, loading) for c in (pair.pre, pair.post))
        if memory is None:
            memory = suitable_memory(post)
        _fits(pair.pre, encoded)
        return cls(pre, post, encoded, corrupted, memory, keep, neutral(tokenizer))

    def over_prompts(
        self,
        name: str,
        measure: "Callable[[Chunk], xr.Dataset]",
        *,
        variants: int,
        encoded: "Encoded | None" = None,
        beside: "Encoded | None" = None,
        across: bool = True,
    ) -> "xr.Dataset":
        """`over_prompts` with this pair's budget, progress label and store."""
        return over_prompts(
            self.encoded if encoded is None else encoded,
            measure,
            spec=replace(self.post.spec, nodes=min(self.pre.spec.nodes, self.post.spec.nodes)),
            beside=beside,
            across=across,
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
            "clean and corrupted prompts have their answers at different positions: want pairs "
            "that differ "
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

    A sequence θ₀ … θ_T is measured as its pairs (θ₀, θ_t), joined along `checkpoint` = t. Besides
    the measure's own settings a call may say how models run, see `use`. The result gets the
    attributes `measure` and `settings` (see `explained.settings_text`), and of a pair `backend`,
    `device`, `dtype` and `task`.
    Raises: MeasureError: a setting that the measure doesn't have, one that is missing, or no pair
        or task where one is wanted. ModelError: how models run. All before anything is loaded.
    """
    own = signature(fn).parameters
    of_tasks = [name for name, p in own.items() if "Encoded" in str(p.annotation)]

    @wraps(fn)
    def public(subject: Pair | Sequence | Inputs, task: Any = None, **settings: Any):
        import xarray as xr

        settings = kept(settings)
        said = {"measure": fn.__name__, "settings": settings_text(fn, settings)}
        how = {name: v for name, v in settings.items() if name in NAMES and name not in own}
        if isinstance(subject, Inputs):
            if how:
                raise MeasureError(
                    f"{fn.__name__}: {', '.join(how)}: these inputs are open already: say it "
                    "where they are made, Inputs.of(pair, task, loading=...)"
                )
            check_settings(fn, settings)
            return fn(subject, **settings).assign_attrs(said)
        check_settings(fn, settings, NAMES)
        settings = {name: value for name, value in settings.items() if name not in how}
        check_subject(fn.__name__, subject)
        for name, value in {"task": task, **{k: settings.get(k) for k in of_tasks}}.items():
            check_task(fn.__name__, name, value, wanted=name == "task")
        run = running(**how)
        first = subject.pre if isinstance(subject, Pair) else subject.checkpoints[0]
        settings = {k: _encoded(v, first) for k, v in settings.items()}
        on = partial(Inputs.of, task=task, loading=run.loading, memory=run.memory)
        if isinstance(subject, Sequence):
            subject.check()
        pairs = [subject] if isinstance(subject, Pair) else subject.pairs()
        each = []
        for pair in pairs:
            inputs = on(pair)
            each.append(fn(inputs, **settings).assign_attrs(run.attributes(inputs.post)))
        found = each[0]
        if isinstance(subject, Sequence):
            found = xr.concat(each, "checkpoint", join="exact").assign_coords(
                checkpoint=range(1, len(each) + 1)
            )
        return found.assign_attrs(said, task=task.source)

    public.__signature__ = _signature(fn)  # type: ignore[attr-defined]  # what help() shows
    return public


def check_settings(
    fn: Callable[..., Any], given: Mapping[str, Any], more: Iterable[str] = ()
) -> None:
    """Raises: MeasureError: a setting that fn doesn't have (nor is among `more`), or one that it
    must have, is missing."""
    own = {n: p for n, p in signature(fn).parameters.items() if p.kind is p.KEYWORD_ONLY}
    more = [name for name in more if name not in own]
    if unknown := [name for name in given if name not in own and name not in more]:
        also = f"; and how models run: {', '.join(more)}" if more else ""
        raise MeasureError(
            f"{fn.__name__} has no setting {unknown[0]!r}: it has {', '.join(own) or 'none'}{also}"
        )
    if missing := [n for n, p in own.items() if p.default is p.empty and n not in given]:
        raise MeasureError(f"{fn.__name__}: {missing[0]} is missing: give {missing[0]}=...")


def only_settings(fn: "Callable[..., xr.Dataset]") -> "Callable[..., xr.Dataset]":
    """Refuses, in one line, what a measure that runs no model isn't told: how models run, too."""

    @wraps(fn)
    def public(*args: Any, **settings: Any):
        check_settings(fn, settings)
        return fn(*args, **settings)

    return public


def check_subject(name: str, subject: Any, kinds: tuple[type, ...] = (Pair, Sequence)) -> None:
    """Raises: MeasureError: it is none of these."""
    if not isinstance(subject, kinds):
        raise MeasureError(
            f"{name}: got {type(subject).__name__}, want "
            f"{' or '.join(f'a {kind.__name__}' for kind in kinds)}: mf.Pair(pre, post)"
        )


def check_task(measure: str, name: str, value: Any, *, wanted: bool = True) -> None:
    """Raises: MeasureError: no Task, or none where one is wanted."""
    from mechforget.tasks import Encoded, Task

    if value is None:
        if wanted:
            raise MeasureError(f"{measure}(pair, task): the {name} is missing")
    elif not isinstance(value, (Task, Encoded) if name != "task" else Task):
        raise MeasureError(
            f"{measure}: {name} is {value!r:.60}, a {type(value).__name__}: want a task, "
            "mf.tasks.load('builtin:capital') or of a file of yours"
        )


def _signature(fn: Callable[..., Any]) -> Signature:
    """The measure's settings, and how models run."""
    subject, *own = signature(fn).parameters.values()
    subject = subject.replace(name="subject", annotation="Pair | Sequence | Inputs")
    task = Parameter("task", Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation="Task")
    names = {p.name for p in own}
    how = [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=None, annotation=field.type)
        for field in fields(Running)
        if field.name not in names
    ]
    return Signature([subject, task, *own, *how], return_annotation="xr.Dataset")


def _encoded(value: Any, checkpoint: Checkpoint) -> Any:
    """A setting that is a task, as the checkpoint's tokens; any other as it is."""
    from mechforget.tasks import Task

    return value.encode(checkpoint.tokenizer()) if isinstance(value, Task) else value
