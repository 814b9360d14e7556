"""Checkpoints by name from the Hugging Face hub: from the local cache, else from the network.

What is cached is used without asking whether the hub has a newer version, so a study that is run
again gets the same weights. With `HF_HUB_OFFLINE=1` the network is never used.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mechforget.checkpoints import safetensors_index
from mechforget.errors import CheckpointError

NAME = re.compile(r"(?P<repo>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>\w[\w./-]*))?")
SECONDS = 5.0  # for the hub's first answer: without a network nobody should wait for minutes
SMALL = ["*.json", "*.jinja", "*.txt", "tokenizer.model", "adapter_model.safetensors"]
WANTED = [  # what a causal model needs: no pickles, no second format of the same weights
    *SMALL,
    "model.safetensors",
    "model-*.safetensors",
]


def fetch(repo: str, revision: str | None = None, weights: bool = True) -> Path:
    """The local folder of a hub model, which is downloaded if it isn't cached. weights: False
    downloads the small files only; a client of a server needs no others.

    Raises: CheckpointError: the model is unknown or gated, or the hub doesn't answer in time.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]  # httpx's or httpx2's, by version
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = repo + (f"@{revision}" if revision else "")
    if cached := cached_folder(repo, revision, weights):
        return cached
    if constants.is_offline_mode():
        raise CheckpointError(
            f"{name}: no such file or folder, and not in the hub's cache, with HF_HUB_OFFLINE set: "
            f"unset it, or give a path"
        )
    try:
        with _hush():
            HfApi().model_info(repo, revision=revision, timeout=SECONDS)
            folder = snapshot_download(
                repo,
                revision=revision,
                allow_patterns=WANTED if weights else SMALL,
                ignore_patterns=["*/*"],
            )
    except GatedRepoError as error:
        raise CheckpointError(
            f"{name} is gated on the hub: accept its licence there, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo} has no revision {revision!r} on the hub") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise CheckpointError(
            f"{name}: no such file or folder, and no such model on the hub (a private one needs "
            f"`hf auth login`)"
        ) from error
    except (HfHubHTTPError, HTTPError, OSError) as error:
        raise CheckpointError(
            f"{name}: no such file or folder, not in the hub's cache, and {constants.ENDPOINT} "
            f"cannot be reached ({type(error).__name__}): give a path, or connect and try again"
        ) from error
    if not _whole(Path(folder), weights):
        if not weights:
            raise CheckpointError(f"{name} has no config.json and tokenizer_config.json on the hub")
        raise CheckpointError(
            f"{name} has no safetensors weights on the hub (pickles are never read): convert a "
            f"copy that you trust with transformers' save_pretrained(), and give that folder"
        )
    return Path(folder)


def cached_folder(repo: str, revision: str | None = None, weights: bool = True) -> Path | None:
    """The folder in the local cache if it is complete. Never uses the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=WANTED if weights else SMALL,
            ignore_patterns=["*/*"],
            local_files_only=True,
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    return Path(folder) if _whole(Path(folder), weights) else None


def _whole(folder: Path, weights: bool) -> bool:
    """Whether the folder is complete: other tools cache single files, e.g. only a tokenizer."""
    adapter = (folder / "adapter_model.safetensors").is_file()
    if not weights:
        small = ("config.json", "tokenizer_config.json")
        return adapter or all((folder / name).is_file() for name in small)
    try:
        files = safetensors_index.files(folder)
    except CheckpointError:  # shards are missing
        return False
    return bool(files) or adapter


@contextmanager
def _hush() -> Iterator[None]:
    """Inside there are no log lines, and progress bars only on a terminal."""
    from huggingface_hub import utils

    level, bars = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(level)
        if bars:
            utils.enable_progress_bars()
