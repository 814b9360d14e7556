"""How much faster is the growing batch than one forward per head? Both on the same pair, in turn.

    python benchmarks/sweep.py PRE POST --task TASK [--prompts 8] [--rounds 3]

The loop is TransformerLens's own: `run_with_hooks` on a TransformerBridge, one head at a time, the
prompts in one batch, the donor's z cached once, only the last logits kept. Restore, z, log_prob.
"""

import sys
import time
from statistics import median

import numpy as np
import torch
import tyro

import mechforget as mf
from mechforget.measures import Inputs
from mechforget.models.transformer_lens import TransformerLens
from mechforget.sweeps import MEMORY
from mechforget.sweeps.chunks import max_tokens
from mechforget.sweeps.donor import Donor, capture, points, tokens
from mechforget.sweeps.plan import single
from mechforget.sweeps.run import sweep


def loop(inputs: Inputs, donor: Donor) -> np.ndarray:
    """log p [1 + variant, read] by a forward per head."""
    post, encoded = inputs.post, inputs.encoded
    assert isinstance(post, TransformerLens)
    ids, spec = tokens(encoded, post), post.spec
    at = encoded.read_row, encoded.read_position
    target = torch.as_tensor(encoded.read_target)

    def read(logits: torch.Tensor) -> torch.Tensor:
        return logits[at].log_softmax(-1)[torch.arange(len(target)), target]

    found = [read(post.module(ids, use_cache=False))]
    for layer in range(spec.layers):
        theirs = donor.activations[layer, "z"]
        for head in range(spec.heads):

            def put(z, hook, theirs=theirs, head=head):
                z[:, :, head] = theirs[:, :, head]
                return z

            hooks = [(f"blocks.{layer}.attn.hook_z", put)]
            found.append(read(post.module.run_with_hooks(ids, fwd_hooks=hooks, use_cache=False)))
    return torch.stack(found).numpy()


def main(pre: str, post: str, /, task: str, prompts: int = 8, rounds: int = 3) -> None:
    """Prints seconds of each round, the ratio pair by pair, and the largest difference."""
    pair, old = mf.Pair(pre, post), mf.tasks.load(task)
    old = old.select([i < prompts for i in range(len(old))], f"the first {prompts}")
    inputs = Inputs.of(pair, old)
    variants = single(inputs.post.spec, "z")
    ids = tokens(inputs.encoded, inputs.pre)
    donor = Donor(inputs.pre, capture(inputs.pre, ids, points(variants)))
    budget = max_tokens(inputs.post.spec, MEMORY, ids.shape[1])
    ratios = []
    for _ in range(rounds):
        start = time.perf_counter()
        ours, _ = sweep(inputs.post, inputs.encoded, donor, variants, max_tokens=budget)
        middle = time.perf_counter()
        with torch.no_grad():
            theirs = loop(inputs, donor)
        end = time.perf_counter()
        ratios.append((end - middle) / (middle - start))
        sys.stdout.write(
            f"growing batch {middle - start:.1f} s, loop {end - middle:.1f} s, "
            f"ratio {ratios[-1]:.2f}, largest difference {abs(ours - theirs).max():.1e} nats\n"
        )
    sys.stdout.write(
        f"median ratio {median(ratios):.2f}: {len(variants)} heads, {prompts} prompts\n"
    )


if __name__ == "__main__":
    tyro.cli(main)
