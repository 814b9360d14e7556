"""From a checkpoint to a model that has proved itself."""

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from mechforget import progress
from mechforget.checkpoints import Checkpoint, adapter, share
from mechforget.checkpoints.placement import SPREAD
from mechforget.checkpoints.quiet import quiet
from mechforget.errors import ModelError
from mechforget.models import half
from mechforget.models.proof import prove, reference, supported
from mechforget.models.protocol import Model

BACKENDS = ("transformer_lens", "nnsight", "remote")
DTYPES = ("float32", "float64", "bfloat16", "float16")
DEVICES = "cpu, cuda, cuda:N, auto or disk"
KEPT = 3  # open models: pre, post and one control


@dataclass(frozen=True)
class Loading:
    """How weights are held while a model runs."""

    backend: str = "transformer_lens"
    device: str = "cpu"
    dtype: str = "float32"
    server: str | None = None  # of backend remote; None: hosted NDIF
    half_donors: bool = False  # of backend remote: what travels between models, as float16

    def check(self) -> None:
        """Whether a model can be opened like this on this machine; nothing is loaded.

        Raises: ModelError: the first value that is wrong, what is wanted, in one line.
        """
        if self.backend not in BACKENDS:
            raise ModelError(
                f"backend {self.backend!r} is unknown; backends: {', '.join(BACKENDS)}"
            )
        if self.dtype not in DTYPES:
            raise ModelError(f"dtype {self.dtype!r}: want {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
        if self.backend != "remote":
            if self.server is not None:
                raise ModelError(f"server {self.server!r} needs backend remote")
            if self.half_donors:
                raise ModelError("half_donors needs backend remote: nothing travels here")
            _check_device(self.device, self.backend)
            return
        if self.server is not None and not self.server.startswith(("http://", "https://")):
            raise ModelError(f"server {self.server!r}: want http://HOST:PORT")
        if self.device != "cpu":
            raise ModelError(
                f"device {self.device!r} is for models that run here; where a served one lies is "
                "its server's choice: leave device out"
            )


DEFAULT = Loading()
_open: OrderedDict[tuple[Checkpoint, Any, Loading], Model] = OrderedDict()


def open(checkpoint: Checkpoint, loading: Loading = DEFAULT) -> Model:
    """Load a checkpoint into a model that has proved itself. The last three stay open; parameters
    that are equal in two of them, bit for bit, share memory. If a checkpoint's files have changed,
    it is loaded again.

    Raises: CheckpointError: it cannot be loaded. ModelError: the backend cannot serve it.
    """
    key = (checkpoint, checkpoint.stamp(), loading)
    if key in _open:
        _open.move_to_end(key)
        return _open[key]
    loading.check()
    if loading.backend == "remote":
        with progress.bar(f"asking for {checkpoint.path.name}", 1, unit="models"):
            return _kept(key, _served(checkpoint, loading))
    import torch

    dtype = getattr(torch, loading.dtype)
    with progress.bar(f"opening {checkpoint.path.name}", 2, unit="steps") as advance:
        hf_model = _load(checkpoint, dtype, loading.device)
        advance(1)
        with quiet():
            model = proven(hf_model, loading.backend)
    for (_, _, how), opened in reversed(_open.items()):
        if how == loading and loading.device not in SPREAD and _shapes(opened) == _shapes(model):
            share(opened.module, model.module)
            break
    return _kept(key, model)


def _check_device(device: str, backend: str) -> None:
    """Raises: ModelError: no such device, here or anywhere."""
    if device in SPREAD and backend != "nnsight":
        raise ModelError(
            f"device {device!r} spreads a model, which {backend} can't run: want backend nnsight"
        )
    if device == "mps":
        raise ModelError(
            "device 'mps' is not supported: mechforget adds up in float64, which mps doesn't have: "
            "use device 'cpu'"
        )
    if device in ("cpu", *SPREAD):
        return
    if not (found := re.fullmatch(r"cuda(?::(\d+))?", device)):
        raise ModelError(f"device {device!r} is unknown: want {DEVICES}")
    import torch

    n = torch.cuda.device_count()
    if int(found[1] or 0) >= n:
        raise ModelError(
            f"device {device!r} is not usable here: this machine has {n or 'no'} CUDA "
            f"device{'s' * (n != 1)} that torch can use (mechforget doctor lists them)"
        )


def _kept(key: tuple[Checkpoint, Any, Loading], model: Model) -> Model:
    while len(_open) >= KEPT:
        _open.popitem(last=False)
    _open[key] = model
    return model


def _served(checkpoint: Checkpoint, loading: Loading) -> Any:
    """The checkpoint on a server, which knows it by its hub id or its folder's path. An adapter is
    put on its base there."""
    from mechforget.models.remote import Remote

    base, added = checkpoint.base or checkpoint, None
    if base.kind not in ("folder", "hub"):
        raise ModelError(
            f"{checkpoint.ref} ({base.kind}) can't be served: save the whole model "
            "(load(), save_pretrained()), and serve that folder"
        )
    if checkpoint.base is not None:
        adapter.check_wearable(checkpoint.path)
        if loading.server is None:
            raise ModelError(
                f"{checkpoint.ref}: hosted NDIF doesn't have this adapter: serve it with its base "
                f"(python -m remote.serve {base.ref} {checkpoint.ref}) and name that server with "
                "--server URL"
            )
        added = str(checkpoint.path)
    name = base.ref if base.kind == "hub" else str(base.path)
    return Remote(
        name, checkpoint.tokenizer(), loading.server, added, half_donors=loading.half_donors
    )


def _load(checkpoint: Checkpoint, dtype: Any, device: str) -> Any:
    try:
        return checkpoint.load(dtype=dtype, device=device)
    except (RuntimeError, AssertionError) as error:
        if "CUDA" not in str(error) and "device" not in str(error).lower():
            raise
        raise ModelError(f"device {device!r} is not usable here: {error}") from error


def proven(hf_model: Any, backend: str) -> Model:
    """The module wrapped, in place, by a backend that has proved itself on it.

    Raises: ModelError: what a backend trips over in an architecture that it wasn't made for.
    """
    with supported(hf_model):
        if half.slow(hf_model):  # plain Hugging Face would take hours for a large one
            half.in_float32(hf_model)
        if backend == "nnsight":
            from mechforget.models import nnsight

            return nnsight.proven(hf_model)
        from mechforget.models.transformer_lens import TransformerLens

        expected = reference(hf_model)
        return prove(TransformerLens(hf_model), expected)


def _shapes(model: Model) -> dict[str, Any]:
    return {name: p.shape for name, p in model.module.named_parameters()}
