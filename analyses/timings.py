"""How long does each measure take? Runs all of them on one pair and times every job.

    python analyses/timings.py              # the demo's pair; writes docs/timings.md; 20 minutes
    python analyses/timings.py --device cuda --backend nnsight --out timings-cuda.md

Seconds depend on the machine, which may be shared. What can be compared is their ratio to a forward
pass over the same prompts in the same run. A job is what a run stores under one name.
"""

import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
import tyro

import mechforget as mf
from mechforget.measures import Inputs
from mechforget.measures.forgetting import unchanged
from mechforget.models import Loading
from mechforget.study.catalogue import names
from mechforget.study.prompts import prompts as chosen
from mechforget.study.run import run, to_stderr
from mechforget.study.settings import study


def main(
    pre: str = "runs/demo/1-language",
    post: str = "runs/demo/2-currency",
    task: str = "builtin:language",
    new_task: str = "builtin:currency",
    prompts: int = 16,
    backend: str = "transformer_lens",
    device: str = "cpu",
    out: Path = Path("docs/timings.md"),
) -> None:
    """Runs every measure that this pair allows, and writes the table."""
    settings = study(
        pre=pre,
        post=post,
        task=task,
        new_task=new_task,
        prompts=prompts,
        backend=backend,
        device=device,
        measures=names(),
    )
    with tempfile.TemporaryDirectory() as scratch:
        manifest = run(settings, Path(scratch) / "run", say=to_stderr).manifest
    loading = Loading(backend, device)
    inputs = Inputs.of(mf.Pair(pre, post), chosen(settings, task), loading=loading)
    forwards = []
    for _ in range(3):
        start = time.perf_counter()
        unchanged(inputs.post, inputs.encoded)
        forwards.append(time.perf_counter() - start)
    forward, ids = min(forwards), inputs.encoded.ids
    seconds: dict[str, float] = manifest["seconds"]
    rows = [
        f"| {name} | {s:.1f} | {s / forward:.0f} |"
        for name, s in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    model, used = manifest["model"], ("torch", "transformers", "transformer_lens", "nnsight")
    on_gpu = device.startswith("cuda")
    where = torch.cuda.get_device_name(device) if on_gpu else f"{os.cpu_count()} cores"
    versions = ", ".join(f"{name.replace('_', '-')} {version(name)}" for name in used)
    out.write_text(
        "# Time by measure\n\n"
        f"Made by `python analyses/timings.py`: don't edit. mechforget {mf.__version__}, "
        f"{versions}; {where}, {backend}.\n\n"
        f"A {model['name']} model of {model['layers']} layers with {model['heads']} heads each, "
        f"and {inputs.encoded.n_prompts} prompts ({len(ids)} rows of at most {ids.shape[1]} "
        "tokens, for a right and a wrong answer each). One forward pass of one checkpoint over "
        f"them takes {forward:.2f} s (best of 3). Most jobs run both checkpoints and measure both "
        "directions.\n\n| job | seconds | forward passes |\n|---|---|---|\n"
        + "\n".join(rows)
        + f"\n| all | {sum(seconds.values()):.0f} | {sum(seconds.values()) / forward:.0f} |\n",
        "utf-8",
    )
    sys.stdout.write(f"{out}\n")


if __name__ == "__main__":
    tyro.cli(main)
