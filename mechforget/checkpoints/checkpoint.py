"""A checkpoint: what a user's words for one (path, hub name, adapter, GGUF) come down to."""

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
    """A folder, a .gguf file, a folder with an adapter or one .gguf, or org/name[@revision].

    What exists on disk wins over the hub. Reads headers and JSON only; no weights. weights: False
    for one that runs on a server: config and tokenizer are enough, and no more is downloaded.
    Raises: CheckpointError: not there, truncated, a pickle, or no checkpoint.
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
        """Where config.json and whole weights lie: an adapter's base; a GGUF's conversion, which
        the first use makes."""
        if self.base is not None:
            return self.base.folder
        return gguf.convert(self.path) if self.kind == "gguf" else self.path

    @cached_property
    def config(self) -> "PreTrainedConfig":
        """Raises: CheckpointError: unknown, quantised, needs remote code, not causal."""
        return folder.config(self.folder)

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The fast tokenizer; one object per checkpoint. An adapter's own, if it was saved along.
        Raises: CheckpointError: none."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        own = self.kind == "adapter" and (self.path / "tokenizer.json").is_file()
        return folder.tokenizer(self.path if own else self.folder)

    @property
    def has_weights(self) -> bool:
        """Whether they are here; one that runs on a server may have its small files only."""
        return self.kind == "gguf" or any(self.folder.glob("*.safetensors"))

    def tensors(self) -> dict[str, TensorInfo]:
        """Name, shape, dtype and byte range of every stored tensor (of an adapter: its base's)."""
        return self._tensors

    @cached_property
    def _tensors(self) -> dict[str, TensorInfo]:
        return folder.tensors(self.folder)

    def read(self, name: str) -> "torch.Tensor":
        """One tensor as stored, without loading the others.
        Raises: CheckpointError: an adapter (its sums are stored nowhere), or no such tensor."""
        if self.kind == "adapter":
            raise CheckpointError(
                f"{self.ref}: an adapter's merged weights are not stored, so they cannot be read "
                f"one by one: load() and save_pretrained() it, and open that"
            )
        if name not in self._tensors:
            raise CheckpointError(f"{self.ref} stores no tensor {name!r}: see tensors()")
        return safetensors_index.read(name, self._tensors[name])

    def check(self) -> None:
        """All that can be told without reading weights: config, tokenizer, adapter and base.

        Raises: CheckpointError: in one line.
        """
        rows = self.config.get_text_config().vocab_size
        tokenizer = self.tokenizer()
        added = tokenizer.added_tokens_decoder  # an unused <pad> past the last row does no harm
        top = max((i for i in tokenizer.get_vocab().values() if i not in added), default=0)
        if top >= rows:
            raise CheckpointError(
                f"{self.ref}: its tokenizer gives ids up to {top}, its embedding has {rows} rows: "
                f"the tokenizer is another model's"
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
        """The model: exactly the stored weights, an adapter merged; eval mode, no gradients.

        Raises: CheckpointError: missing, unexpected, misshapen, NaN or infinite weights.
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
        """Name, size and time of change of every file that decides the weights: whether what was
        read from them still holds."""
        files = self._files()
        if self.kind in ("folder", "hub"):
            files = [self.path / "config.json", *files]
        seen = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        return (*seen, *(self.base.stamp() if self.base is not None else ()))

    def _files(self) -> list[Path]:
        """Where its own weights are; of an adapter, also the scale of the sum."""
        if self.kind == "adapter":
            return [self.path / adapter.CONFIG, self.path / adapter.WEIGHTS]
        if self.kind == "gguf":
            return [self.path]
        if not self.has_weights:
            return [self.path / "config.json"]
        return safetensors_index.files(self.path)

    def digest(self) -> str:
        """SHA-256 over the weight files, streamed; what `sha256sum` says where there is one file.

        Of an adapter: over its base's, its settings (the scale of the sum) and its weights. Without
        weights here: over config.json.
        """
        own = digest.digest(self._files())
        if self.base is None:
            return own
        return hashlib.sha256(f"{self.base.digest()}\n{own}\n".encode()).hexdigest()
