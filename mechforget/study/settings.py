"""The settings of a study: from a TOML file, or from the options of `compare`."""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mechforget.errors import StudyError
from mechforget.study import catalogue
from mechforget.study.catalogue import ALL, defaults, names

SITES = ("z", "head_out", "attn_out", "mlp_out", "resid_post")
Backend = Literal["transformer_lens", "nnsight", "remote"]
Dtype = Literal["float32", "float64", "bfloat16", "float16"]


class Study(BaseModel):
    """All settings that a run's numbers depend on. The manifest keeps them, and a resumed run is
    compared with them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pre: str
    post: str
    task: str
    between: tuple[str, ...] = ()  # a sequence: checkpoints between pre and post, in order
    new_task: str | None = None
    control_twin: str | None = None  # another seed of post: the pair (post, twin)
    control_old: str | None = None  # pre trained on with the old task: the pair (pre, old)
    only_known: bool = False  # keep the prompts that pre answers right
    measures: tuple[str, ...] = defaults()
    sites: tuple[str, ...] = SITES
    few_shot: Annotated[int, Field(ge=0)] = 0
    prompts: Annotated[int, Field(ge=2)] | None = None  # at most this many, drawn with `seed`
    # Heads whose patching is exact: the first by attribution patching. None: all.
    screen: Annotated[int, Field(ge=1)] | None = None
    graft_top: Annotated[int, Field(ge=0)] = 16  # heads whose single matrices are grafted too
    seed: Annotated[int, Field(ge=0)] = 0
    backend: Backend = "transformer_lens"
    server: str | None = None  # of backend remote; none: hosted NDIF
    half_donors: bool = False  # of backend remote: what travels between models, as float16
    device: str = "cpu"
    dtype: Dtype = "float32"
    # GB for one forward's activations. None: what suits the machine.
    memory: Annotated[float, Field(gt=0)] | None = None

    @field_validator("measures", mode="after")
    @classmethod
    def _every(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return names() if ALL in given else tuple(dict.fromkeys(given))

    @field_validator("sites", mode="after")
    @classmethod
    def _once(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(given))

    def model_post_init(self, _: object) -> None:
        from mechforget.models.sites import ACTIVATIONS

        for name, given, known in (
            ("measures", self.measures, names()),
            ("sites", self.sites, ACTIVATIONS),
        ):
            if unknown := [x for x in given if x not in known]:
                raise StudyError(
                    f"{name}: {', '.join(unknown)} unknown; want {', '.join(known)}"
                    + (f", or {ALL}" if name == "measures" else "")
                )
        if self.server is not None and self.backend != "remote":
            raise StudyError(f"server {self.server!r} needs backend remote")
        if self.half_donors and self.backend != "remote":
            raise StudyError("half_donors needs backend remote: elsewhere nothing is sent")
        if self.device != "cpu" and self.backend == "remote":
            raise StudyError(
                f"device {self.device!r} is for models that run here; a served model runs where "
                "its server put it: leave device out"
            )
        if self.server is not None and not self.server.startswith(("http://", "https://")):
            raise StudyError(f"server {self.server!r}: want http://HOST:PORT")
        for entry in catalogue.ENTRIES:
            if entry.name not in self.measures:
                if used := [o for o in entry.options if getattr(self, o) is not None]:
                    raise StudyError(f"{used[0]} needs {entry.name} among the measures")
                continue
            if lacks := [m for m in entry.needs if m not in self.measures]:
                raise StudyError(f"measures: {entry.name} needs {lacks[0]}: add it")
            if lacks := [s for s in entry.sites if s not in self.sites]:
                raise StudyError(f"measures: {entry.name} needs {lacks[0]}: add it to sites")


def study(**given: object) -> Study:
    """Makes a study of these settings.

    Raises: StudyError: the first wrong setting, in one line.
    """
    try:
        return Study(**given)  # type: ignore[arg-type]  # pydantic checks what a file may hold
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "study"
        raise StudyError(
            f"{key}: {first['msg']} (got {first.get('input')!r}); keys: "
            f"{', '.join(Study.model_fields)}"
        ) from None


def default_settings() -> dict[str, Any]:
    """The settings of a study that gives none, in the form in which a manifest keeps them."""
    every = {name: field.get_default() for name, field in Study.model_fields.items()}
    required = ("pre", "post", "task")
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in every.items()
        if name not in required
    }


def read(path: str | Path) -> tuple[Study, str | None]:
    """A study file, and its `out` folder if it names one.

    Raises: StudyError: not there, no TOML, or a wrong setting.
    """
    file = Path(path).expanduser()
    try:
        text = tomllib.loads(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise StudyError(f"{file}: {error}; want a TOML study file") from None
    out = text.pop("out", None)
    if out is not None and not isinstance(out, str):
        raise StudyError(f"{file}: out: {out!r}; want the folder's name")
    return study(**text), out
