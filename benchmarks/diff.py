"""How fast two checkpoints are compared, beside a plain read of the same bytes; and the memory.

Makes PRE and POST of the given size (bfloat16, Llama 3 8B's width, every weight of POST moved) in
FOLDER, reads both with `cat`'s loop and with `checkpoints.stream.sums` in the same state of the
page cache: `cold` (the kernel's copies dropped) and `warm` (read once before). Prints both rates.

    python benchmarks/diff.py FOLDER            # 8 GB each; removes them
    python benchmarks/diff.py FOLDER --gb 2 --keep
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from large import Peak, forget
from safetensors.torch import save_file

SHAPES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
LAYER = 2 * sum(a * b for a, b in SHAPES.values()) / 1e9


def write(folders: list[Path], gb: float) -> None:
    layers = max(1, round(gb / LAYER))
    block = torch.randn(14336 * 4096 + layers, generator=torch.Generator().manual_seed(0))
    pre, post = (0.02 * block).bfloat16(), (0.02 * block + 1e-3 * block.flip(0)).bfloat16()
    config = {
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": layers,
    }
    for folder, values in zip(folders, (pre, post), strict=True):
        folder.mkdir(parents=True)
        where = {}
        for layer in range(layers):
            file = f"model-{layer + 1:05}-of-{layers:05}.safetensors"
            tensors = {
                f"model.layers.{layer}.{name}.weight": values[layer : layer + a * b].view(a, b)
                for name, (a, b) in SHAPES.items()
            }
            save_file({k: v.clone() for k, v in tensors.items()}, folder / file, {"format": "pt"})
            where |= dict.fromkeys(tensors, file)
        index = json.dumps({"metadata": {}, "weight_map": where})
        (folder / "model.safetensors.index.json").write_text(index)
        (folder / "config.json").write_text(json.dumps(config))


def plain_read(folders: list[Path]) -> None:
    """What `cat` does: the files one after the other through one buffer."""
    buffer = memoryview(bytearray(1 << 20))
    for folder in folders:
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb", buffering=0) as stream:
                while stream.readinto(buffer):
                    pass


def compare(folders: list[Path]) -> None:
    from mechforget import checkpoints
    from mechforget.checkpoints.stored import stored
    from mechforget.checkpoints.stream import sums

    for _ in sums([stored(checkpoints.open(folder)) for folder in folders]):
        pass


def measure(folders: list[Path]) -> None:
    compare([folders[0], folders[0]])  # imports, and warm caches where they fit
    size = sum(f.stat().st_size for d in folders for f in d.glob("*.safetensors")) / 1e9
    works = {"plain read": plain_read, "diff": compare}
    for state in ("warm", "cold"):
        if state == "warm":
            plain_read(folders)
        rates: dict[str, list[float]] = {name: [] for name in works}
        peak = 0.0
        for _ in range(3):
            for name, work in works.items():
                if state == "cold":
                    for folder in folders:
                        forget(folder)
                with Peak() as seen:
                    start = time.monotonic()
                    work(folders)
                    rates[name].append(size / (time.monotonic() - start))
                peak = max(peak, seen.worst)
        best = {name: max(found) for name, found in rates.items()}
        print(
            f"{state}: 2 x {size / 2:.2f} GB; plain read {best['plain read']:.2f} GB/s, diff "
            f"{best['diff']:.2f} GB/s: {best['diff'] / best['plain read']:.2f} of it (best of 3; "
            f"all: {json.dumps({k: [round(x, 2) for x in v] for k, v in rates.items()})}); "
            f"RssAnon at most {peak:.2f} GB",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gb", type=float, default=8, help="of each checkpoint")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--measure", action="store_true", help="only measure what is there")
    given = parser.parse_args()
    folders = [given.folder / "pre", given.folder / "post"]
    if given.measure:
        measure(folders)
        return
    given.folder.mkdir(parents=True, exist_ok=True)
    if not folders[1].exists():
        if shutil.disk_usage(given.folder).free < 2.2e9 * given.gb:
            sys.exit(f"{given.folder} has no room for twice {given.gb:g} GB: give another, or --gb")
        write(folders, given.gb)
    command = [sys.executable, __file__, str(given.folder), "--measure"]
    try:
        subprocess.run(command, check=True)
    finally:
        if not given.keep:
            for folder in folders:
                shutil.rmtree(folder)


if __name__ == "__main__":
    main()
