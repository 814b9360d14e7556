"""What is installed, what devices there are, what is missing."""

import shutil
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    *("torch", "transformers", "transformer_lens", "nnsight", "accelerate", "safetensors", "peft"),
    *("datasets", "numpy", "scipy", "xarray", "zarr", "pydantic", "tyro", "countryinfo"),
    *("pycountry", "lemminflect"),
)


def doctor() -> None:
    """Prints one line per fact."""
    import torch

    from mechforget import __version__
    from mechforget.checkpoints.families import TESTED
    from mechforget.study import catalogue

    lines = [f"mechforget {__version__}", f"python {sys.version.split()[0]}"]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name} missing: pip install {name.replace('_', '-')}")
    by_default, others = catalogue.defaults(), catalogue.names()
    others = [name for name in others if name not in by_default]
    lines.append(f"measures: {', '.join(by_default)}; not by default: {', '.join(others)}")
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines.append(
        f"devices: cpu ({torch.get_num_threads()} threads)" + "".join(f", {c}" for c in cuda)
    )
    lines.append(f"architectures proven by the tests: {', '.join(TESTED)}")
    if _installed("torchvision"):
        lines.append(
            "torchvision is installed: beside a CPU torch it can break transformers' imports"
        )
    free = shutil.disk_usage(".").free / 1e9
    lines.append(f"disk: {free:.0f} GB free here")
    sys.stdout.write("\n".join(lines) + "\n")


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False
