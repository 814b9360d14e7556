"""A checkpoint, opened from a path, a hub name, a LoRA adapter or a GGUF file."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mechforget.checkpoints import adapter, digest, folder, gguf, hub, placement, safetensors_index
from mechforget.checkpoints.safetensors_index import TensorInfo
from mechforget.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["folder", "hub", "adapter", "gguf"]


def open(
    ref: "str | Path | Checkpoint", *, revision: str | None = None, weights: bool = True
) -> "Checkpoint":
    """Open a folder, a .gguf file, a folder with an adapter or with one .gguf file, or a hub name,
    org/name[@revision].

    A path that exists takes precedence over the hub. Only headers and JSON files are read, no
    weights. weights: False if the model runs on a server: then config and tokenizer are enough, and
    nothing else is downloaded.
    Raises: CheckpointError: it doesn't exist, is truncated, is a pickle, or is no checkpoint.
    """
    if isinstance(ref, Checkpoint):
        return ref
    text = str(ref)
    path = Path(text).expanduser()
    if text and path.exists():  # Path("") would be the current folder
        if revision:
            raise CheckpointError(f"{text} is a local path, which has no revision {revision!r}")
        return _local(text, path.resolve(), "folder", weights)
    match = hub.NAME.fullmatch(text)
    if match is None:
        raise CheckpointError(f"{text!r}: no such file or folder (and not a hub name, org/name)")
    named = match["revision"]
    if named and revision and named != revision:
        raise CheckpointError(f"{text}: two revisions, {named!r} and {revision!r}: give one")
    found = hub.fetch(match["repo"], named or revision, weights)
    return _local(text if named or not revision else f"{text}@{revision}", found, "hub", weights)


def _local(ref: str, path: Path, kind: Kind, weights: bool) -> "Checkpoint":
    if path.is_file():
        if path.suffix == ".gguf":
            gguf.check_file(path)
            return Checkpoint(ref, "gguf", path)
        if folder.is_pickle(path.name):
            raise CheckpointError(folder.refuse_pickle(path))
        raise CheckpointError(f"{ref} is a file; want its folder, or a .gguf file")
    if (path / adapter.CONFIG).is_file():
        adapter.check_files(path)
        name, revision = adapter.base_of(path)
        try:
            base = open(name, revision=revision, weights=weights)
        except CheckpointError as error:
            raise CheckpointError(
                f"the base of adapter {ref}: {error} (if {name} is a folder: write its absolute "
                f"path as base_model_name_or_path in {adapter.CONFIG})"
            ) from error
        if base.kind == "adapter":
            raise CheckpointError(
                f"adapter {ref}: its base {name} is an adapter too; merge that one into its base "
                f"first (merge_and_unload), and save it"
            )
        return Checkpoint(ref, "adapter", path, base)
    if not any(path.glob("*.safetensors")) and (file := gguf.only_file(path)):
        gguf.check_file(file)
        return Checkpoint(ref, "gguf", file)
    if weights or not (path / "config.json").is_file():
        folder.tensors(path)
    folder.json_object(path / "config.json")
    return Checkpoint(ref, kind, path)


@dataclass(frozen=True)
class Checkpoint:
    """Made by `open`. `path` is the folder (of a hub model: in the local cache) or .gguf file."""

    ref: str
    kind: Kind
    path: Path
    base: "Checkpoint | None" = None  # an adapter's

    @cached_property
    def folder(self) -> Path:
        """The folder with config.json and the full weights: for an adapter its base's folder, for a
        GGUF file the converted one, which is made on first use."""
        if self.base is not None:
            return self.base.folder
        return gguf.convert(self.path) if self.kind == "gguf" else self.path

    @cached_property
    def config(self) -> "PreTrainedConfig":
        """Raises: CheckpointError: the model is of an unknown type, is quantised, needs code of its
        own, or is not a causal language model."""
        return folder.config(self.folder)

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The fast tokenizer, one object per checkpoint. An adapter's own tokenizer is used if one
        was saved with it. Raises: CheckpointError: there is none."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        own = self.kind == "adapter" and (self.path / "tokenizer.json").is_file()
        return folder.tokenizer(self.path if own else self.folder)

    @property
    def has_weights(self) -> bool:
        """Whether the weights are on this machine: if the model runs on a server, only its small
        files may be here."""
        return self.kind == "gguf" or any(self.folder.glob("*.safetensors"))

    def tensors(self) -> dict[str, TensorInfo]:
        """Name, shape, dtype and byte range of every stored tensor (for an adapter: its base's)."""
        return self._tensors

    @cached_property
    def _tensors(self) -> dict[str, TensorInfo]:
        return folder.tensors(self.folder)

    def read(self, name: str) -> "torch.Tensor":
        """One tensor as stored, without loading the others.
        Raises: CheckpointError: an adapter, whose merged weights aren't stored, or no such tensor.
        """
        if self.kind == "adapter":
            raise CheckpointError(
                f"{self.ref}: an adapter's merged weights are not stored, so they cannot be read "
                f"one by one: load() and save_pretrained() it, and open that"
            )
        if name not in self._tensors:
            raise CheckpointError(f"{self.ref} stores no tensor {name!r}: see tensors()")
        return safetensors_index.read(name, self._tensors[name])

    def check(self) -> None:
        """Check all that can be checked without reading weights: config, tokenizer, adapter, base.

        Raises: CheckpointError: in one line.
        """
        rows = self.config.get_text_config().vocab_size
        tokenizer = self.tokenizer()
        added = tokenizer.added_tokens_decoder  # an unused <pad> beyond the last row is harmless
        top = max((i for i in tokenizer.get_vocab().values() if i not in added), default=0)
        if top >= rows:
            raise CheckpointError(
                f"{self.ref}: its tokenizer gives ids up to {top}, but its embedding has {rows} "
                f"rows: the tokenizer belongs to another model; copy this model's own"
            )
        if self.base is not None:
            adapter.check_fits(self.path, self.base.path, self.config)

    def load(
        self,
        *,
        dtype: "torch.dtype | str" = "float32",
        device: "torch.device | str" = "cpu",
        attn_implementation: str = "eager",
    ) -> "PreTrainedModel":
        """The model with exactly the stored weights (an adapter is merged), in eval mode, without
        gradients.

        Raises: CheckpointError: weights are missing, unexpected, of another shape, NaN or infinite.
        """
        import torch

        spread = str(device) in placement.SPREAD
        if self.base is not None:
            if spread:
                raise CheckpointError(
                    f"{self.ref} is an adapter, which is merged in memory: merge and save it first "
                    f"(load(), save_pretrained()), or use --device cpu"
                )
            adapter.check_fits(self.path, self.base.path, self.config)
        model = folder.load(
            self.folder,
            self.config,
            dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
            attn_implementation=attn_implementation,
            device=str(device),
        )
        if self.base is not None:
            model = adapter.merge(model, self.path)
        folder.refuse_nonfinite(model, self.ref)
        return model if spread else model.to(device)  # type: ignore[arg-type]  # transformers wraps .to, untyped

    def stamp(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size and modification time of every file that determines the weights: while these
        are the same, what was read before is still valid."""
        files = self._files()
        if self.kind in ("folder", "hub"):
            files = [self.path / "config.json", *files]
        seen = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return (*seen, *(self.base.stamp() if self.base is not None else ()))

    def _files(self) -> list[Path]:
        """Its own weight files; for an adapter also its config, which holds the scale."""
        if self.kind == "adapter":
            return [self.path / adapter.CONFIG, self.path / adapter.WEIGHTS]
        if self.kind == "gguf":
            return [self.path]
        if not self.has_weights:
            return [self.path / "config.json"]
        return safetensors_index.files(self.path)

    def digest(self) -> str:
        """SHA-256 of the weight files, streamed. For one file it is what `sha256sum` prints.

        For an adapter it covers the base, the adapter's config (which holds the scale) and its
        weights. If the weights aren't on this machine, it is that of config.json.
        """
        own = digest.digest(self._files())
        if self.base is None:
            return own
        return hashlib.sha256(f"{self.base.digest()}\n{own}\n".encode()).hexdigest()
