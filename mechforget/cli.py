"""The `mechforget` command. Nothing heavy is imported before a subcommand runs."""

import errno
import gc
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg

from mechforget.errors import CheckpointError, MechforgetError, ModelError
from mechforget.options import WhatToMeasure, WhereItRuns, WhichPrompts
from mechforget.study.catalogue import tables
from mechforget.study.settings import Dtype, Study, read, study

TABLES = f"One of {', '.join(tables())}."


@dataclass(frozen=True)
class Compare:
    """Which heads, layers and experts carry what fine-tuning made PRE forget?

    The last line that it prints is the verdict. For example:
    mechforget compare org/model runs/fine-tuned --task builtin:capital --prompts 40 --out run
    """

    pre: Annotated[Positional[str], arg(metavar="PRE")]
    """The checkpoint before: a folder, a hub id (org/name@revision), a LoRA adapter or a .gguf."""
    post: Annotated[Positional[str], arg(metavar="POST")]
    """The checkpoint after."""
    which_prompts: WhichPrompts
    what_to_measure: WhatToMeasure = field(default_factory=WhatToMeasure)
    where_it_runs: WhereItRuns = field(default_factory=WhereItRuns)
    between: tuple[str, ...] = ()
    """Checkpoints between PRE and POST, in the order of their training: each is measured against
    PRE as POST is, and the exports get a column `checkpoint`."""
    out: Path = Path("run")
    """The folder of the run."""

    def __call__(self) -> None:
        given = {"pre": self.pre, "post": self.post, "between": self.between}
        for group in (self.which_prompts, self.what_to_measure, self.where_it_runs):
            given |= vars(group)
        for key in ("measures", "sites"):
            given[key] = tuple(x for word in given[key] for x in word.split(",") if x)
        _run(study(**given), self.out)


@dataclass(frozen=True)
class Run:
    """Run a study file."""

    study: Annotated[Positional[Path], arg(metavar="STUDY.toml")]
    """Its keys are the long options of compare, with underscores for dashes, and `out`."""
    out: Path | None = None
    """The run's folder, if the file names none."""

    def __call__(self) -> None:
        found, out = read(self.study)
        _run(found, self.out or Path(out or self.study.with_suffix("")))


@dataclass(frozen=True)
class Plan:
    """What a study of MODEL would need and cost, from its config.json alone; and whether it would
    run: its rewriting is executed on tensors without values."""

    model: Annotated[Positional[Path], arg(metavar="MODEL")]
    """A folder with config.json; weights and tokenizer may be missing."""
    study: Path | None = None
    """STUDY.toml; its checkpoints need not exist. Without it the default measures are planned."""
    bandwidth: float = 3.0
    """GB/s of the disk that weights are streamed from."""
    throughput: float = 200.0
    """TFLOP/s that are reached."""
    dtype: Dtype | None = None
    """The study's; without one, bfloat16."""
    prompts: int | None = None
    """The study's; where they can't be read, 20."""
    tokens: int = 16
    """Tokens of a prompt, where the study's own prompts can't be read."""
    memory: float | None = None
    """GB for one forward's activations: the study's; without one, as in compare."""

    def __call__(self) -> None:
        gc.disable()  # looking for what a plan leaves behind takes a fifth of its time
        try:
            self._show()
        finally:
            gc.enable()

    def _show(self) -> None:
        from mechforget.planning.forecast import forecast
        from mechforget.planning.scan import meta_model, meta_model_of_any_kind
        from mechforget.views.plan import outline, show

        given = {"pre": "pre", "post": "post", "task": "", "backend": "nnsight"}
        given |= {"dtype": "bfloat16"}
        if self.study is not None:
            given = read(self.study)[0].model_dump(exclude_unset=True)
        names = ("dtype", "prompts", "memory")
        given |= {name: vars(self)[name] for name in names if vars(self)[name] is not None}
        options = {name: vars(self)[name] for name in ("tokens", "bandwidth", "throughput")}
        asked, path = study(**given), self.model.expanduser()
        try:
            hf_model = meta_model(path, asked.dtype)
        except CheckpointError as error:
            if self.study is not None or not (path / "config.json").is_file():
                raise
            outline(meta_model_of_any_kind(path, asked.dtype), asked.dtype, str(error))
            return
        try:
            plan = forecast(hf_model, path, asked, **options)
        except ModelError as error:
            if self.study is not None:
                raise
            outline(hf_model, asked.dtype, str(error))
        else:
            show(plan)


@dataclass(frozen=True)
class Report:
    """Write a run's report.html again."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The folder of the run."""

    def __call__(self) -> None:
        from mechforget.study.store import Store

        _out(str(_report(Store(self.run))))


@dataclass(frozen=True)
class Show:
    """A run's verdict and its strongest heads, in the terminal."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The folder of the run."""
    heads: int = 10
    """How many heads."""

    def __call__(self) -> None:
        from mechforget.study.store import Store
        from mechforget.views.terminal import show

        show(Store(self.run), self.heads)


@dataclass(frozen=True)
class Export:
    """One of a run's tables, to standard output or a file."""

    run: Annotated[Positional[Path], arg(metavar="RUN")]
    """The folder of the run."""
    measure: Annotated[Positional[str], arg(metavar="TABLE", help=TABLES)]
    format: Literal["csv", "parquet", "json", "netcdf"] = "csv"
    out: Path | None = None
    """The file; standard output without it (csv and json only)."""

    def __call__(self) -> None:
        from mechforget.study.export import export
        from mechforget.study.store import Store

        export(Store(self.run), self.measure, self.format, self.out)


@dataclass(frozen=True)
class Diff:
    """Where do the weights of A and B differ? Streamed: no model is built or held in memory."""

    a: Annotated[Positional[str], arg(metavar="A")]
    """Checkpoint before: folder, hub id or LoRA adapter."""
    b: Annotated[Positional[str], arg(metavar="B")]
    """Checkpoint after."""
    spectra: bool | None = None
    """Stable and effective rank of every matrix's change, and its overlap with A's strongest
    directions. Without a word: of matrices up to 512 x 512."""
    rows: int = 20
    """How many tensors and how many heads are shown."""
    format: Literal["table", "csv", "parquet", "json", "netcdf"] = "table"
    """Another than table: every tensor, head, group and expert."""
    out: Path | None = None
    """The file; standard output without it (csv and json only)."""

    def __call__(self) -> None:
        from mechforget.checkpoints import Pair
        from mechforget.measures.weights import table
        from mechforget.study.export import check, write
        from mechforget.views.diff import show

        if self.format == "table" and self.out is not None:
            raise MechforgetError(f"--out {self.out}: a table has no file: give --format csv too")
        check(self.format, self.out)
        found, said = table(Pair(self.a, self.b), spectra=self.spectra)
        if self.format == "table":
            show(found, said, self.rows)
            return
        if said:
            sys.stderr.write(f"note: {said}\n")
        write(found, self.format, self.out)


@dataclass(frozen=True)
class Train:
    """Fine-tune on one task after the other, and score all tasks after each."""

    sequence: Annotated[Positional[Path], arg(metavar="SEQUENCE.toml")]
    """SEQUENCE.toml."""

    def __call__(self) -> None:
        from mechforget.measures import continual
        from mechforget.training import train
        from mechforget.views.terminal import scores_lines

        scores = train(self.sequence)
        cost = (continual(scores, metric=metric) for metric in ("log_prob", "correct"))
        for line in scores_lines(scores, *cost):
            _out(line)


@dataclass(frozen=True)
class Plant:
    """Save a copy of PRE that is broken in known places, to see whether a measure finds them."""

    pre: Annotated[Positional[str], arg(metavar="PRE")]
    """Checkpoint: folder, hub id or .gguf."""
    out: Annotated[Positional[Path], arg(metavar="OUT")]
    """The new folder; its planted.json says what was changed."""
    scramble: tuple[str, ...] = ()
    """Heads' weights (L2H1: all; L2H1.vo: W_V and W_O) or experts (L2E3): entries change places."""
    rotate: tuple[str, ...] = ()
    """Heads (L2H1.k): what they compute is turned, and nothing that reads it."""
    compensate: tuple[str, ...] = ()
    """Heads (L2H1): values turned, W_O turned with them: the model's function stays."""
    overwrite: tuple[str, ...] = ()
    """Layers (L3): the MLP becomes noise of the same norm."""
    redirect: tuple[str, ...] = ()
    """Layers (L3) that are mixtures of experts: each expert gets another's tokens."""
    amount: float = 1.0
    """How far towards the damaged weights; of rotate and compensate, in right angles."""
    seed: int = 0

    def __call__(self) -> None:
        import json

        from mechforget.training import Damage, plant
        from mechforget.training.damage import KINDS
        from mechforget.training.plant import TRUTH

        damages = [Damage(kind, at, self.amount) for kind in KINDS for at in vars(self)[kind]]
        out = plant(self.pre, self.out, damages, seed=self.seed)
        truth = json.loads((out / TRUTH).read_text("utf-8"))
        for one in truth["damages"]:
            whose = [f"L{one['layer']}H{head}" for head in one.get("heads", ())]
            whose = whose or [f"L{one['layer']}" + (f"E{one['expert']}" if "expert" in one else "")]
            _out(f"{one['kind']} {one['part']} of {', '.join(whose)}: {', '.join(one['tensors'])}")
        _out(f"planted: {out}")


@dataclass(frozen=True)
class Serve:
    """A server of your own for backend remote: mechforget serve MODEL --device cpu."""

    words: Positional[tuple[str, ...]] = ()
    """What `python -m remote.serve --help` lists."""

    def __call__(self) -> None:
        import subprocess

        checkout = Path(__file__).parents[1]
        if not (checkout / "remote" / "serve.py").is_file():
            raise MechforgetError(
                "serving is done from a checkout, and this is an installed package: clone the "
                "repository, and there `make setup remote-setup` and `mechforget serve MODEL`"
            )
        path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
        command = [sys.executable, "-m", "remote.serve", *self.words]
        sys.exit(subprocess.call(command, env={**os.environ, "PYTHONPATH": path}))


@dataclass(frozen=True)
class Doctor:
    """Versions, devices, architectures, and what is missing."""

    def __call__(self) -> None:
        from mechforget.views.doctor import doctor

        doctor()


if TYPE_CHECKING:
    from mechforget.study.store import Store

Command = Compare | Run | Plan | Report | Show | Export | Diff | Train | Plant | Serve | Doctor


# What the machine, not the user, is to blame for: no room, or no right to write.
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)


def main() -> None:
    """Exit codes: 0 done, 1 the machine failed (disk full), 2 wrong input, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        if sys.argv[1:2] == ["serve"] and sys.argv[2:]:
            Serve(tuple(sys.argv[2:]))()  # its options are the server's own
        tyro.cli(
            Command,  # type: ignore[arg-type]  # a union of commands is what tyro takes
            prog="mechforget",
            description="Which attention heads carry what fine-tuning made a model forget?",
            config=(OmitSubcommandPrefixes, OmitArgPrefixes),
        )()
        sys.stdout.flush()
    except MechforgetError as error:
        _stop(2, str(error))
    except KeyboardInterrupt:
        _stop(130, "interrupted; what was finished is kept, the same command goes on")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _stop(1, "")
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        _stop(1, f"{error.strerror}: {error.filename or ''}; what was finished is kept")


def _run(settings: Study, out: Path) -> None:
    import warnings

    from mechforget.study.run import run, to_stderr
    from mechforget.views.terminal import verdict_lines

    if not sys.stderr.isatty():
        warnings.simplefilter("ignore")
    store = run(settings, out.expanduser(), say=to_stderr)
    report = _report(store)
    for line in verdict_lines(store, report):
        _out(line)


def _report(store: "Store") -> Path:
    from mechforget.views.bundle import bundle
    from mechforget.views.report import write

    path = store.path / "report.html"
    write(bundle(store), path)
    return path


def _out(line: str) -> None:
    sys.stdout.write(line + "\n")


def _stop(code: int, message: str) -> None:
    if message:
        sys.stderr.write(f"mechforget: {' '.join(message.split())}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
