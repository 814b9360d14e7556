"""A tiny base on disk and three small tasks, shared by the room's tests; all are read-only."""

import gc
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
import transformers.trainer  # noqa: F401  # before the freeze below

from mechforget.tasks import Task
from tests.tiny import save_tiny

FACTS = {
    "capital": {
        "The capital of France is": "Paris",
        "The capital of Italy is": "Rome",
        "The capital of Germany is": "Berlin",
        "The capital of Japan is": "Tokyo",
        "The capital of Peru is": "Lima",
    },
    "currency": {
        "The currency of France is the": "euro",
        "The currency of Japan is the": "yen",
        "The currency of Peru is the": "sol",
    },
    "plural": {"One dog, two": "dogs", "One house, two": "houses", "One cat, two": "cats"},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("MECHFORGET_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session", autouse=True)
def quick():
    """Tiny matrices: more threads only wait for each other. Trainer collects garbage after every
    training, over all that imports made, which takes longer than the training."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.freeze()
    yield
    gc.unfreeze()
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"), "llama", 0)


def task(name: str) -> Task:
    pairs = {"prompt": list(FACTS[name]), "answer": list(FACTS[name].values())}
    return Task(name, pd.DataFrame(pairs), f"{name}.jsonl")


def write(name: str, folder: Path) -> str:
    """The same task as a file; returns its path."""
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in FACTS[name].items()]
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def answer_log_probs(model, tokenizer, prompt: str, answer: str) -> tuple[list[float], bool]:
    """By hand, one prompt alone, no batch, no padding: log p of each answer token, and whether
    all are the argmax. What scoring and training are compared with."""
    start = tokenizer(prompt)["input_ids"]
    end = tokenizer(" " + answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([start + end])).logits[0].double()
    log_p = logits.log_softmax(-1)
    at = range(len(start) - 1, len(start) + len(end) - 1)
    found = [float(log_p[i, token]) for i, token in zip(at, end, strict=True)]
    right = all(int(logits[i].argmax()) == token for i, token in zip(at, end, strict=True))
    return found, right
