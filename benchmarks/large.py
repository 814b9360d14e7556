"""An exact sweep over all heads of a model that memory doesn't hold: bytes read, memory, time.

Two layers of Llama 4 Scout's width (5120 wide, 40 heads, 16 experts of 8192 in both layers, an
8,192-token vocabulary; random weights, bfloat16, about 9 GB), written to FOLDER once. POST is PRE
but for one shard: its attention's W_O carries a planted difference in head 7 of layer 0, and its
other shards are the same files. Both are streamed from the disk (`device = "disk"`).

    python benchmarks/large.py FOLDER          # writes, sweeps in a child of its own, removes
    python benchmarks/large.py FOLDER --keep   # leaves the two checkpoints there
    python benchmarks/large.py FOLDER --device cuda --layers 6 --free 40   # or auto; 40 GB of a GPU

`--free` fills a GPU but for that many GB, as if it were a smaller one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Llama4TextConfig

HEADS, PLANTED = 40, (0, 7)


def config(layers: int) -> Llama4TextConfig:
    return Llama4TextConfig(
        num_hidden_layers=layers,
        vocab_size=8192,
        architectures=["Llama4ForCausalLM"],
        dtype="bfloat16",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def write(pre: Path, post: Path, layers: int) -> None:
    """Shard by shard, so that no more than one is in memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(layers))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        drawn = torch.randn(shape, generator=generator, dtype=torch.bfloat16, device=device)
        return drawn.cpu()

    for folder in (pre, post):
        folder.mkdir(parents=True)
        config(layers).save_pretrained(folder)
    where = {}
    for i, (name, shape) in enumerate(shapes.items()):
        file = f"model-{i + 1:05d}-of-{len(shapes):05d}.safetensors"
        where[name] = file
        scale = 1.0 if len(shape) == 1 else shape[-1] ** -0.5 if len(shape) == 2 else 0.02
        weight = torch.ones(shape) if len(shape) == 1 else None
        if weight is None:
            weight = random(*shape) * scale
        save_file({name: weight.to(torch.bfloat16)}, pre / file, {"format": "pt"})
        if name == f"model.layers.{PLANTED[0]}.self_attn.o_proj.weight":
            columns = slice(PLANTED[1] * 128, (PLANTED[1] + 1) * 128)
            weight[:, columns] += 2 * random(5120, 128) * scale
            save_file({name: weight.contiguous()}, post / file, {"format": "pt"})
        else:
            os.link(pre / file, post / file)
    index = json.dumps({"metadata": {}, "weight_map": where})
    for folder in (pre, post):
        (folder / "model.safetensors.index.json").write_text(index)


def remove(folder: Path) -> None:
    """What `write` made; what else lies in the folder isn't ours."""
    for made in (folder / "pre", folder / "post"):
        shutil.rmtree(made)
    if not any(folder.iterdir()):
        folder.rmdir()


def forget(folder: Path) -> None:
    """Makes the kernel drop its copies of these files, so that what is read comes from the disk."""
    for file in folder.glob("*.safetensors"):
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def read_bytes() -> int:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


class Peak:
    """The largest RssAnon seen, GB, from a thread that looks 50 times a second."""

    def __enter__(self) -> "Peak":
        import threading

        self.worst, self.done = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.02):
            status = Path("/proc/self/status").read_text()
            kb = int(status.split("RssAnon:")[1].split()[0])
            self.worst = max(self.worst, kb / 1e6)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def sweep_both(pre: Path, post: Path, device: str) -> None:
    import numpy as np

    from mechforget import checkpoints
    from mechforget.models import Loading
    from mechforget.models import open as opened
    from mechforget.sweeps.donor import Donor
    from mechforget.sweeps.plan import single
    from mechforget.sweeps.run import sweep
    from mechforget.tasks.encoded import Encoded

    rows, length = 4, 12
    rng = np.random.default_rng(0)
    encoded = Encoded(
        ids=rng.integers(3, 8192, (rows, length)),
        length=np.full(rows, length),
        row_prompt=np.arange(rows),
        prompt_length=np.full(rows, length - 1),
        read_row=np.arange(rows),
        read_position=np.full(rows, length - 2),
        read_target=rng.integers(3, 8192, rows),
        read_prompt=np.arange(rows),
        read_wrong=np.zeros(rows, bool),
        cluster=np.arange(rows),
    )
    size = sum(f.stat().st_size for f in pre.glob("*.safetensors"))
    print(f"checkpoint: {size / 1e9:.2f} GB each; {rows} prompts of {length} tokens")
    loading = Loading("nnsight", device, "bfloat16")
    with Peak() as peak:
        start = time.monotonic()
        models = [opened(checkpoints.open(folder), loading) for folder in (pre, post)]
        print(f"opened and proven in {time.monotonic() - start:.0f} s, RssAnon {peak.worst:.2f} GB")
        peak.worst = 0.0
        variants = single(models[0].spec, "head_out")
        total = 0

        def measured(name, folder, work):
            nonlocal total
            forget(folder)
            before, start = read_bytes(), time.monotonic()
            found = work()
            got, seconds = read_bytes() - before, time.monotonic() - start
            total += got
            print(f"{name}: {got / 1e9:.2f} GB read = {got / size:.2f} x, {seconds:.1f} s")
            return found

        donors = [
            measured(f"capture {name}", folder, lambda m=m: Donor.of(m, encoded, variants))
            for name, folder, m in zip(("pre", "post"), (pre, post), models, strict=True)
        ]
        restore = measured(
            "sweep post",
            post,
            lambda: sweep(models[1], encoded, donors[0], variants, own=donors[1]),
        )[0]
        broken = measured(
            "sweep pre", pre, lambda: sweep(models[0], encoded, donors[1], variants, own=donors[0])
        )[0]
    print(
        f"both directions: {total / size:.2f} x the checkpoint; RssAnon at most {peak.worst:.2f} GB"
    )
    # In a random model a prompt gains as often as it loses: sizes, and no mean that cancels.
    sizes = [abs(found[1:] - found[0]).mean(1) for found in (restore, broken)]
    best = [divmod(int(x.argmax()), HEADS) for x in sizes]
    print(
        f"variants: {len(variants)}; strongest head restoring {best[0]}, breaking {best[1]}; "
        f"planted {PLANTED}"
    )
    # head_out is exact here: with the planted head's output restored, post is pre in that layer.
    gap = abs(restore[1 + PLANTED[0] * HEADS + PLANTED[1]] - broken[0]).max()
    print(f"post with the planted head restored differs from pre by {gap:.1e} nats (bfloat16)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--device", default="disk")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--free", type=float, help="GB of the GPU left free")
    parser.add_argument("--sweep", action="store_true", help="only sweep what is there")
    given = parser.parse_args()
    pre, post = given.folder / "pre", given.folder / "post"
    if given.sweep:
        if given.free:
            taken = torch.cuda.mem_get_info()[0] - int(given.free * 1e9)
            _ballast = torch.empty(taken, dtype=torch.uint8, device="cuda")
            print(f"of the GPU {torch.cuda.mem_get_info()[0] / 1e9:.1f} GB free")
        sweep_both(pre, post, given.device)
        return
    if not pre.exists():
        start = time.monotonic()
        write(pre, post, given.layers)
        print(f"written in {time.monotonic() - start:.0f} s", flush=True)
    try:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--sweep"], check=True)
    finally:
        if not given.keep:
            remove(given.folder)


if __name__ == "__main__":
    main()
