"""A tiny pair that can do a toy task and forgets it, and the command run on it in this process."""

import atexit
import contextlib
import io
import json
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.tiny import tiny_model, tiny_tokenizer

LAYERS, HEADS, GROUPS, WIDTH = 3, 4, 2, 8  # of tests.tiny's llama
DAMAGED = ((0, 1), (1, 2))  # heads whose W_O post has shrunk
PLACES = (
    *("France", "Italy", "Spain", "Germany", "Japan", "Peru", "Egypt", "Canada"),
    *("Chile", "China", "India", "Kenya", "Norway", "Cuba", "Mali", "Oman"),
)
ANSWERS = ("Paris", "Rome", "Madrid", "Berlin", "Tokyo", "Lima", "dog", "go")
HOSTILE = "</script><script>alert('x')</script><!-- \u2028 \U0001f600 &amp; \x00"


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


def mechforget(*words: object) -> Said:
    """The command in this process: `main` with these arguments, neither stream a terminal."""
    from mechforget.cli import main

    out, err, argv, code = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = ["mechforget", *map(str, words)]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            try:
                main()
            except SystemExit as stop:
                code = stop.code or 0
    finally:
        sys.argv = argv
    return Said(code, out.getvalue(), err.getvalue())


@cache
def home() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="mechforget-tests-"))
    atexit.register(shutil.rmtree, folder, True)
    return folder


def rows(n: int = len(PLACES)) -> list[dict[str, str]]:
    """One prompt per place; an answer of its own for each of `ANSWERS`, used twice."""
    return [
        {
            "prompt": f"The capital of {place} is",
            "answer": ANSWERS[i % len(ANSWERS)],
            "subject": place,
        }
        for i, place in enumerate(PLACES[:n])
    ]


def write_task(path: Path, records: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return path


@cache
def task() -> Path:
    return write_task(home() / "toy.jsonl", rows())


@cache
def new_task() -> Path:
    found = [{"prompt": f"People from {p} are called", "answer": "Italian"} for p in PLACES[:8]]
    return write_task(home() / "new.jsonl", found)


def fit(model, records: list[dict[str, str]], steps: int, lr: float = 3e-3):
    """Plain full-batch Adam on log p(answer | prompt)."""
    tokenizer = tiny_tokenizer()
    both = [
        (tokenizer(r["prompt"])["input_ids"], tokenizer(" " + r["answer"])["input_ids"])
        for r in records
    ]
    width = max(len(p) + len(a) for p, a in both)
    ids = torch.zeros(len(both), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, (p, a) in enumerate(both):
        ids[i, : len(p) + len(a)] = torch.tensor(p + a)
        labels[i, len(p) : len(p) + len(a)] = torch.tensor(a)
    adam = torch.optim.Adam(model.parameters(), lr)
    for _ in range(steps):
        adam.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        adam.step()
    return model.eval()


def save(model, name: str) -> Path:
    folder = home() / name
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


@cache
def half() -> Path:
    """Before training is through: it knows part of the task."""
    return save(fit(tiny_model("llama"), rows(), 15), "half")


@cache
def pre() -> Path:
    return save(fit(load(half()), rows(), 60), "pre")


@cache
def post() -> Path:
    """pre with the output slices of DAMAGED heads flipped: it answers worse, and only there."""
    model = load(pre())
    with torch.no_grad():
        for layer, head in DAMAGED:
            o = model.model.layers[layer].self_attn.o_proj.weight
            o[:, head * WIDTH : (head + 1) * WIDTH] *= -1
    return save(model, "post")


def noisy(source: Path, name: str, size: float, seed: int = 0) -> Path:
    """A checkpoint with relative Gaussian noise on every weight."""
    model, generator = load(source), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + size * torch.randn(weight.shape, generator=generator))
    return save(model, name)


@cache
def compared() -> tuple[Path, Said]:
    """RUN of the pair with everything the default measures, and what the command said."""
    run = home() / "run"
    said = mechforget(
        *("compare", pre(), post(), "--task", task(), "--new-task", new_task(), "--out", run),
        *("--graft-top", 3),
    )
    return run, said
