"""The catalogue of measures: one entry for each. Whatever lists, plans, runs, exports or explains
measures reads these entries. To add a measure, write its file and add its entry.

Functions are named as `module:function` and loaded when they are used, so the catalogue can be read
without importing torch, and no table or plan depends on all measures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

ALL = "all"
RECIPES = "mechforget.study.recipes"
TABLES = "mechforget.study.tables"


@dataclass(frozen=True)
class Table:
    """A table that `export` can write.

    build: `module:function` of the run's store; if empty, the generic table of the result with this
    name. of: the results that the table is made from, if they are named differently (`of`, or
    `of/...`).
    """

    name: str
    build: str = ""
    of: str = ""


@dataclass(frozen=True)
class Entry:
    """A measure: the question it answers, how it is run, what it may lack, and its tables."""

    name: str
    question: str  # what it answers, in plain words
    # How it is run. Either `module:function` that takes Inputs and returns the result; or, for
    # measures with several results, `module:function` that takes a Scope and returns the jobs.
    measure: str = ""
    jobs: str = ""
    lacks: str = ""  # takes a Scene; returns why the measure cannot be made, or ""
    notes: str = ""  # takes a Scope; returns what is left out of the measure
    tables: tuple[Table, ...] = ()  # empty: the generic table
    default: bool = True
    needs: tuple[str, ...] = ()  # other measures that it builds on
    sites: tuple[str, ...] = ()  # sites of the study that it builds on
    options: tuple[str, ...] = ()  # settings of a study that only this measure uses
    always: bool = False  # whether it is made even if a study does not name it
    # Those of its results that are made before any others, because a run says something about them
    # as soon as it has them: all that the verdict reads, and a first map (`study/so_far.py`).
    early: tuple[str, ...] = ()
    corrupted: bool = False  # whether it compares clean with corrupted prompts

    def exports(self) -> tuple[Table, ...]:
        return self.tables or (Table(self.name),)


ENTRIES = (
    Entry(
        "forgetting",
        "how much worse is the old task answered, and the new one better?",
        jobs=f"{RECIPES}.forgetting:jobs",
        always=True,  # every share and every verdict needs it
        early=("forgetting",),
        tables=(Table("forgetting", f"{TABLES}.forgetting:forgetting"),),
    ),
    Entry(
        "patching",
        "in which heads, layers and experts is the loss expressed?",
        jobs=f"{RECIPES}.patching:patching",
        tables=(Table("patching", f"{TABLES}.effects:patching"),),
        early=(
            *("patching/head_out", "control_twin/patching/head_out"),
            "control_old/patching/head_out",
        ),
    ),
    Entry(
        "sets",
        "how few heads together give the loss back, beside random ones?",
        jobs=f"{RECIPES}.patching:sets",
        lacks=f"{RECIPES}.patching:lacks_for_sets",
        tables=(Table("sets", f"{TABLES}.effects:sets"),),
        needs=("patching",),
        sites=("head_out",),
        early=("sets",),
    ),
    Entry(
        "grafting",
        "in which heads', layers' and experts' weights was the loss written?",
        jobs=f"{RECIPES}.grafting:jobs",
        lacks=f"{RECIPES}.grafting:lacks",
        notes=f"{RECIPES}.grafting:notes",
        tables=(Table("grafting", f"{TABLES}.effects:grafting"),),
        early=("grafting/all",),
    ),
    Entry(
        "attention_change",
        "which heads attend elsewhere, and what do they do with repeated text?",
        jobs=f"{RECIPES}.attention:jobs",
        lacks=f"{RECIPES}.attention:lacks",
        tables=(Table("attention_change"), Table("attention_roles")),
    ),
    Entry(
        "logit_attribution",
        "which heads and MLPs write the answer's logit, before and after?",
        jobs=f"{RECIPES}.logit_attribution:jobs",
        lacks=f"{RECIPES}.logit_attribution:lacks",
    ),
    Entry(
        "attribution",
        "what would patching give, to first order, from gradients?",
        jobs=f"{RECIPES}.attribution:jobs",
        lacks=f"{RECIPES}.attribution:lacks",
        tables=(Table("attribution", f"{TABLES}.attribution:attribution", of="attribution"),),
        options=("screen",),
        early=("attribution/head_out",),
    ),
    Entry(
        "ledger",
        "whose change of weights wrote the loss? Every head's, matrix's and expert's",
        jobs=f"{RECIPES}.ledger:jobs",
        lacks=f"{RECIPES}.ledger:lacks",
        tables=(
            Table("ledger", f"{TABLES}.cells:ledger"),
            Table("origins", f"{TABLES}.cells:origins"),
        ),
    ),
    Entry(
        "weights",
        "which weights changed, by how much, and in how many directions?",
        jobs=f"{RECIPES}.weights:jobs",
        lacks=f"{RECIPES}.weights:lacks",
        tables=(Table("weights", f"{TABLES}.weights:weights"),),
    ),
    Entry(
        "drift",
        "how far did representations move, layer by layer and head by head?",
        jobs=f"{RECIPES}.drift:jobs",
        lacks=f"{RECIPES}.drift:lacks",
        tables=(Table("drift", f"{TABLES}.geometry:drift"),),
    ),
    Entry(
        "readout",
        "is the answer erased, or still there and misread?",
        jobs=f"{RECIPES}.readout:jobs",
        lacks=f"{RECIPES}.readout:lacks",
        tables=(Table("readout", f"{TABLES}.geometry:readout"),),
    ),
    Entry(
        "interference",
        "where do the gradients of the old and the new task oppose each other?",
        jobs=f"{RECIPES}.interference:jobs",
        lacks=f"{RECIPES}.interference:lacks",
        notes=f"{RECIPES}.interference:notes",
        tables=(Table("interference", f"{TABLES}.interference:interference"),),
    ),
    Entry(
        "similarity",
        "how alike are the old and the new task?",
        jobs=f"{RECIPES}.similarity:jobs",
        lacks=f"{RECIPES}.similarity:lacks",
        tables=(Table("similarity", f"{TABLES}.similarity:similarity"),),
    ),
    Entry(
        "routing",
        "do a mixture's gates send tokens elsewhere, and does the old routing repair it?",
        jobs=f"{RECIPES}.routing:jobs",
        lacks=f"{RECIPES}.routing:lacks",
        tables=(Table("routing", f"{TABLES}.routing:routing"),),
    ),
    Entry(
        "landscape",
        "is there a barrier between the checkpoints, and did the loss get flatter?",
        jobs=f"{RECIPES}.landscape:jobs",
        lacks=f"{RECIPES}.landscape:lacks",
        tables=(Table("landscape", f"{TABLES}.landscape:landscape", of="landscape"),),
        default=False,  # takes many times as long as the others
    ),
    Entry(
        "clean_corrupt",
        "which heads did the job before, and which do it now?",
        jobs=f"{RECIPES}.patching:clean_corrupt",
        lacks=f"{RECIPES}.patching:lacks_for_clean_corrupt",
        default=False,
        corrupted=True,
    ),
    Entry(
        "patching_positions",
        "at which layer and token position is the loss expressed?",
        jobs=f"{RECIPES}.patching:positions",
        lacks=f"{RECIPES}.patching:lacks_for_positions",
        default=False,
    ),
)
# Tables of a run as a whole, whatever it measured.
WHOLE_RUN = (
    Table("agreement", f"{TABLES}.agreement:agreement", of="forgetting"),
    Table("claims", f"{TABLES}.claims:claims", of="forgetting"),
)


def names() -> tuple[str, ...]:
    """The names of all measures, in the catalogue's order."""
    return tuple(entry.name for entry in ENTRIES)


def defaults() -> tuple[str, ...]:
    """The measures of a study that names none."""
    return tuple(entry.name for entry in ENTRIES if entry.default)


def chosen(measures: tuple[str, ...]) -> list[Entry]:
    """The entries of these measures and those that are always made, in the catalogue's order."""
    return [entry for entry in ENTRIES if entry.always or entry.name in measures]


def early() -> frozenset[str]:
    """The results that are made first, of all measures."""
    return frozenset(name for entry in ENTRIES for name in entry.early)


def tables() -> dict[str, Table]:
    """Every table that `export` knows, by name."""
    every = [table for entry in ENTRIES for table in entry.exports()]
    return {table.name: table for table in (*every, *WHOLE_RUN)}


def load(function: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)
