"""Does a screen find the heads that the exact sweep finds, and how much sooner?

    python benchmarks/screen.py PRE POST --task TASK [--prompts 16] [--keep 32]

Restore and break, head_out, log_prob. Recall: how many of the exact sweep's strongest ten are among
the `keep` heads that attribution patching puts first. Times: attribution of all heads, the exact
patching of the kept ones, and of all; and a plain forward per head, reckoned from one.
"""

import sys
import time

import numpy as np
import tyro
from scipy.stats import spearmanr

import mechforget as mf
from mechforget.measures import Inputs, attribution, patching
from mechforget.measures.attribution import screened
from mechforget.measures.forgetting import unchanged

TOP = 10


def main(pre: str, post: str, /, task: str, prompts: int = 16, keep: int = 32) -> None:
    pair, old = mf.Pair(pre, post), mf.tasks.load(task)
    old = old.select([i < prompts for i in range(len(old))], f"the first {prompts}")
    inputs = Inputs.of(pair, old)
    unchanged(inputs.pre, inputs.encoded)  # the first forward is slower
    clock = [time.perf_counter()]
    unchanged(inputs.post, inputs.encoded)
    clock.append(time.perf_counter())
    estimate = attribution(inputs)
    clock.append(time.perf_counter())
    few = screened(estimate, keep)
    patching(inputs, heads=few)
    clock.append(time.perf_counter())
    exact = patching(inputs)
    clock.append(time.perf_counter())
    forward, screen, confirm, whole = np.diff(clock)
    spec = inputs.post.spec
    say = sys.stdout.write
    for direction in ("restore", "break"):
        true, guess = (
            x.effect.sel(metric="log_prob", direction=direction).mean("prompt").values.ravel()
            for x in (exact, estimate)
        )
        best = [divmod(int(i), spec.heads) for i in np.argsort(-abs(true))[:TOP]]
        say(
            f"{direction}: {sum(head in few for head in best)} of the {TOP} strongest heads are "
            f"among the {keep} kept; Spearman {spearmanr(true, guess)[0]:.2f}\n"
        )
    loop = 2 * (1 + spec.layers * spec.heads) * forward
    say(
        f"attribution of all {screen:.1f} s, the kept exactly {confirm:.1f} s, all exactly "
        f"{whole:.1f} s, a forward per head about {loop:.0f} s\n"
        f"the screen alone is {whole / screen:.1f} times as fast as the exact sweep and "
        f"{loop / screen:.0f} times as a forward per head; with confirmation "
        f"{whole / (screen + confirm):.1f} and {loop / (screen + confirm):.0f} times\n"
    )


if __name__ == "__main__":
    tyro.cli(main)
