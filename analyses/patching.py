"""Patching experiments: which heads express the forgetting, and in whose weights it was written.

    python analyses/patching.py PRE POST TASK OUT

Reads like a method section: every step is one call whose docstring defines it.
"""

import sys
from pathlib import Path

import tyro
import xarray as xr

import mechforget as mf
from mechforget.measures.forgetting import change
from mechforget.statistics import default_floor, interval, sign_flip, summarise
from mechforget.views.figures import head_map, ranked, save


def main(pre: str, post: str, task: str, out: Path, /, prompts: int = 0) -> None:
    """Writes tables (CSV) and figures (PNG, SVG) into OUT.

    Args:
        prompts: use the first so many; 0 is all.
    """
    # Two checkpoints of one architecture, and prompts with a right and a wrong answer.
    pair, old = mf.Pair(pre, post), mf.tasks.load(task)
    if prompts:
        old = old.select([i < prompts for i in range(len(old))], f"the first {prompts} prompts")
    inputs = mf.measures.Inputs.of(pair, old)

    # Forgetting: log p of the right answer, before minus after, prompt by prompt.
    scores = mf.measures.forgetting(inputs)
    lost = change(scores.score).sel(metric="log_prob")
    cluster = scores.cluster.values
    mean, low, high = interval(lost.values, cluster)
    forgotten = bool(sign_flip(lost.values, cluster) <= 0.05 and mean > 0.01)
    floor = float(default_floor("log_prob", float(mean), forgotten))

    # Expressed: give one checkpoint a head's output of the other, exactly, one head at a time.
    # Written: give it the head's weights instead.
    expressed = mf.measures.patching(inputs, site="head_out").effect
    written = mf.measures.grafting(inputs).effect.sel(matrix="all")

    # Both directions, 95 % BCa intervals over prompts, sign-flip tests, one FDR family per map.
    for name, effect in (("expressed", expressed), ("written", written)):
        effect = effect.sel(metric="log_prob").transpose("direction", "layer", "head", "prompt")
        found = summarise(
            effect.values,
            cluster,
            floor=floor,
            fdr_axes=(-2, -1),
            forgetting=lost.values,
            forgetting_significant=forgotten,
        )
        dims = ("direction", "layer", "head")
        table = xr.Dataset(
            {k: (dims, v) for k, v in found.items()}, coords={d: effect[d] for d in dims}
        )
        out.mkdir(parents=True, exist_ok=True)
        table.to_dataframe().to_csv(out / f"{name}.csv")
        title = f"Where the forgetting is {name}"
        restore = table.sel(direction="restore")
        for suffix in ("png", "svg"):
            save(head_map(table, title), out / f"{name}.{suffix}")
            save(ranked(restore, title, floor=floor), out / f"{name}_ranked.{suffix}")

    word = "significant" if forgotten else "not significant: no forgetting to explain"
    sys.stdout.write(f"forgotten: {mean:.3g} nats ({low:.3g} to {high:.3g}), {word}\n")
    sys.stdout.write(f"tables and figures: {out}\n")


if __name__ == "__main__":
    tyro.cli(main)
