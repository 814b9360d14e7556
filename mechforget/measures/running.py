"""How models are run: said once for a notebook (`use`), or for one call of a measure."""

import logging
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from mechforget.errors import ModelError
from mechforget.models import Loading
from mechforget.models.protocol import Model

if TYPE_CHECKING:
    import torch

_said: dict[str, Any] = {}  # by `use`
_noted: set[str] = set()  # notes that were given: each is given once


@dataclass(frozen=True)
class Running:
    """The backend, device and dtype that models run with, and what one forward pass may hold.

    backend: transformer_lens, nnsight or remote. device: cpu, cuda, cuda:N; with backend nnsight
    also auto or disk. dtype: float32, float64, bfloat16 or float16. memory: GB for the activations
    of one forward pass; None: what suits the machine. server: http://HOST:PORT of a server of your
    own, for backend remote; None is hosted NDIF. half_donors: what travels between two served
    models goes as float16.
    """

    backend: str = "transformer_lens"
    device: str = "cpu"
    dtype: str = "float32"
    memory: float | None = None
    server: str | None = None
    half_donors: bool = False

    def __post_init__(self) -> None:
        for name in ("device", "dtype"):  # torch's own objects may be given too
            text = str(getattr(self, name)).removeprefix("torch.")
            object.__setattr__(self, name, text)

    @property
    def loading(self) -> Loading:
        """How `models.open` is told."""
        return Loading(**{field.name: getattr(self, field.name) for field in fields(Loading)})

    def check(self) -> None:
        """Raises: ModelError: a value that no model can run with here, in one line."""
        number = isinstance(self.memory, int | float)
        if self.memory is not None and not (number and self.memory > 0):
            raise ModelError(f"memory {self.memory!r}: want GB, a number above 0")
        self.loading.check()

    def attributes(self, model: Model) -> dict[str, str]:
        """What a result says of how it was made. A server chooses its own device and dtype."""
        if self.backend != "remote":
            return {"backend": self.backend, "device": self.device, "dtype": self.dtype}
        where = self.server or "hosted NDIF"
        return {"backend": self.backend, "device": where, "dtype": getattr(model, "dtype", "")}


NAMES = tuple(field.name for field in fields(Running))


def use(
    *,
    backend: str | None = None,
    device: "str | torch.device | None" = None,
    dtype: "str | torch.dtype | None" = None,
    memory: float | None = None,
    server: str | None = None,
    half_donors: bool | None = None,
) -> Running:
    """Says how models run from here on, for measures and `compare`; a call may say otherwise.

    What isn't given stays as it is, so `use()` only shows it. A backend is given together with its
    server: naming one forgets the server, and `remote` forgets the device, that were said before.
    Args: see `Running`.
    Returns: what is in force now.
    Raises: ModelError: a value that this machine can't run a model with, in one line. Then nothing
        is changed.

    >>> use(dtype="bfloat16")
    Running(backend='transformer_lens', device='cpu', dtype='bfloat16', memory=None, server=None, \
half_donors=False)
    >>> use(dtype="float32", memory=2).dtype  # on a machine with more memory
    'float32'
    """
    given = dict(backend=backend, device=device, dtype=dtype, memory=memory)
    given |= dict(server=server, half_donors=half_donors)
    merged = _merged(given)
    found = Running(**merged)
    found.check()
    _said.clear()
    _said.update(merged)
    return found


def running(**given: Any) -> Running:
    """How one call runs: what it says itself, else what `use` said, else the default.

    Raises: ModelError: a value that this machine can't run a model with, in one line.
    """
    merged = _merged(given)
    found = Running(**merged)
    found.check()
    if "device" not in merged and found.backend != "remote":
        _note_idle()
    return found


def _merged(given: dict[str, Any]) -> dict[str, Any]:
    """What was said and what is given now; what belongs to another backend is forgotten."""
    given = {name: value for name, value in given.items() if value is not None}
    backend = given.get("backend")
    others = {None: (), "remote": ("server", "half_donors", "device")}
    forgotten = others.get(backend, ("server", "half_donors"))
    return {k: v for k, v in _said.items() if k not in forgotten} | given


def _note_idle() -> None:
    """Says once that an accelerator is there, and isn't used."""
    import torch

    if "idle" in _noted or not torch.cuda.is_available():
        return
    _noted.add("idle")
    logging.getLogger("mechforget").warning(
        "note: models run on the CPU; this machine has cuda: mf.use(device='cuda'), "
        "or mf.use(device='cpu') to stay"
    )
