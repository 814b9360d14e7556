"""What the measures' tests run on: a tiny Llama that has learned a task by heart, damaged copies
of it, and any tiny model opened without a folder."""

import copy
from functools import cache

import numpy as np
import pandas as pd
import torch

from mechforget.measures import Inputs
from mechforget.models.opening import proven
from mechforget.tasks.encoded import Encoded
from mechforget.tasks.task import Task
from tests import oracle
from tests.tiny import tiny_model, tiny_tokenizer

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "Peru": "Lima",
    "Egypt": "Cairo",
    "Cuba": "Havana",
    "Chile": "Santiago",
    "Kenya": "Nairobi",
}


@cache
def task() -> Task:
    """Prompts of 5 to 13 tokens; answers of 1 to 8, some without a wrong one of equal length; two
    prompts whose right and wrong answer need a row each; clusters of one and two prompts."""
    rows = [
        {"prompt": f"The capital of {country} is", "answer": city, "subject": country}
        for country, city in CAPITALS.items()
    ]
    rows += [
        {"prompt": f"People from {country} are in", "answer": city, "subject": country}
        for country, city in list(CAPITALS.items())[:4]
    ]
    rows[6]["wrong"], rows[7]["wrong"] = "Santiago", "Nairobi"  # of other lengths
    return Task("toy", pd.DataFrame(rows), "toy")


@cache
def encoded() -> Encoded:
    return task().encode(tiny_tokenizer())


@cache
def memorised():
    """The model that can do the task: each right answer has almost all the probability."""
    model = tiny_model("llama", 0)
    batch, optimizer = encoded(), torch.optim.Adam(model.parameters(), lr=1e-2)
    ids, right = torch.as_tensor(batch.ids), ~batch.read_wrong
    at = batch.read_row[right], batch.read_position[right]
    targets = torch.as_tensor(batch.read_target[right])
    for _ in range(50):
        loss = torch.nn.functional.cross_entropy(model(ids, use_cache=False).logits[at], targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    return model.eval().requires_grad_(False)


def damaged(model, amount=0.5, seed=5):
    """A copy with every weight moved: what pre knew, post half knows."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(amount * weight.std() * noise)
    return model


def opened(hf_model, backend="transformer_lens", device="cpu"):
    """The package's model around a copy, so that the oracle keeps an unwrapped one."""
    return proven(copy.deepcopy(hf_model).to(device), backend)


@cache
def pair():
    """(pre, post) for oracles, and `Inputs` of the same two."""
    hf_pre, hf_post = memorised(), damaged(memorised())
    return hf_pre, hf_post, Inputs(opened(hf_pre), opened(hf_post), encoded())


def scores(logits):
    """metric -> [prompt] from logits [row, position, vocabulary], by loops over the task's text."""
    batch, tokenizer, rows = encoded(), tiny_tokenizer(), task().rows
    log_p = torch.log_softmax(logits.double(), -1).numpy()
    found = {"log_prob": [], "logit_diff": [], "correct": []}
    for prompt in range(batch.n_prompts):
        text, total = rows["prompt"][prompt], {}
        for wrong in (False, True):
            reads = (batch.read_prompt == prompt) & (batch.read_wrong == wrong)
            if not wrong:
                answer = tokenizer(" " + rows["answer"][prompt])["input_ids"]
                start = len(tokenizer(text)["input_ids"])
                assert batch.read_target[reads].tolist() == answer
                assert (batch.read_position[reads] == start - 1 + np.arange(len(answer))).all()
                hits = [
                    log_p[r, p].argmax() == t
                    for r, p, t in zip(
                        batch.read_row[reads], batch.read_position[reads], answer, strict=True
                    )
                ]
            total[wrong] = sum(
                log_p[batch.read_row[i], batch.read_position[i], batch.read_target[i]]
                for i in np.flatnonzero(reads)
            )
            total[wrong] = total[wrong] if reads.any() else np.nan
        found["log_prob"].append(total[False])
        found["logit_diff"].append(total[False] - total[True])
        found["correct"].append(float(all(hits)))
    return {metric: np.array(values) for metric, values in found.items()}


@cache
def plain(model):
    """Scores of a plain Hugging Face forward over the task."""
    return scores(oracle.run(model, torch.as_tensor(encoded().ids)))
