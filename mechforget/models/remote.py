"""A model on a server (NDIF, hosted or one's own): questions are sent to it, answers come back.

One question is one request: for example, a whole sweep. The request returns the id of a job, which
is kept in `journal` until the answer is here. A client that died then asks for the answer of that
job, and doesn't send the question again.
"""

import hashlib
import json
import os
import re
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mechforget import __version__
from mechforget.errors import MechforgetError, ModelError, one_line
from mechforget.models import landing
from mechforget.models.beside import ALONE, ROOMS, described
from mechforget.models.protocol import Proof
from mechforget.models.sites import Spec

HOSTED = "https://api.ndif.us"
AGAIN = ("try again later", "temporarily unavailable")  # NDIF's words where another job may succeed
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TRIES, POLL = 10, 0.1  # two and a half minutes; seconds
PATIENCE = 3600.0  # seconds in one state: hosted NDIF gives a job an hour


class Remote:
    """Implements those parts of `protocol.Model` that need no weights on the client's side; for the
    others, functions marked `@beside_the_model` are run on the server."""

    spec: Spec
    proofs: tuple[Proof, ...]
    journal: Path | None = None

    def __init__(
        self,
        name: str,
        tokenizer: Any,
        server: str | None,
        adapter: str | None = None,
        *,
        half_donors: bool = False,
    ) -> None:
        self.url = (server or HOSTED).rstrip("/")
        if server is None and not os.environ.get("NDIF_API_KEY"):
            raise ModelError(
                "hosted NDIF wants a key: set NDIF_API_KEY in the environment, or name a server of "
                "your own with --server URL"
            )
        self.own, self.half_donors = server is not None, half_donors
        self.deployment, self.adapter = (self.url, name), adapter
        self.name = name if adapter is None else f"{name} with {adapter}"
        self.envoy = _envoy(name, tokenizer, adapter)
        self.state: dict[str, Any] | None = None
        self.state = state = described(self)
        try:
            # The proofs' gaps differ each time that the model is loaded. In the state, they would
            # change the digests of questions, and no job would be found again.
            self.proofs, self.parallel = state.pop("proofs"), state["parallel"]
            self.dtype: str = state["dtype"]  # its server's choice
            spec: Spec = state["spec"]
            self.spec = replace(spec, resident=False)  # weights are not lent over the wire
        except (AttributeError, KeyError, TypeError) as error:
            raise ModelError(
                f"{self.url}: {self.name}: the server describes it in another form "
                f"({type(error).__name__}: {error}): want the same mechforget on both sides"
            ) from error

    @property
    def device(self) -> Any:
        import torch

        return torch.device("cpu")  # ids go from here

    def serves(self, layer: int, name: str) -> bool:
        return name in self.spec.sites and layer in self.spec.at(name)

    def ask(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """What a function returns that runs beside the model.

        Raises: ModelError: one line: the server refused the request, failed, or is gone.
        """
        question = landing.pack((function, self.state, args, kwargs))
        key = _digest(question, self.name)
        job = self._journal().get(key)
        for attempt in range(TRIES):
            try:
                job = job or self._send(question, key)
                found = self._answer(job)
                answer = None if found is None else _read(found)
            except Exception as error:
                text, away = _said(error), _away(error)
                if self.own and self.state is None and "connection refused" in text.lower():
                    raise ModelError(
                        f"{self.url}: nobody answers there: start a server (python -m remote.serve "
                        f"PRE POST), or mend --server"
                    ) from error
                if not (away or isinstance(error, TimeoutError)):
                    self._note(key, None)  # that job failed; the next try is another
                    job = None
                again = away or any(word in text.lower() for word in AGAIN)
                if not again or attempt == TRIES - 1:
                    raise ModelError(f"{self.url}: {self.name}: {text}") from error
                time.sleep(min(30, 2**attempt))
                continue
            self._note(key, None)
            if found is not None:
                return answer
            job = None  # the server has forgotten it
        raise ModelError(f"{self.url}: {self.name}: no answer after {TRIES} tries")

    def _send(self, question: Any, key: str) -> str:
        import nnsight

        text, sources, version = _shipment()
        envoy = self.envoy
        env = envoy._remoteable_get_env()  # its adapter; and eager attention
        backend = _backend(envoy.to_model_key(), self.url, env=env)
        with envoy.session(backend=backend):
            scope: dict[str, Any] = {"__name__": "landing"}
            exec(text, scope)
            scope["install"](sources, version)
            found = nnsight.save(scope["answer"](envoy, question))  # noqa: F841 (what a job gives)
        job = str(backend.job_id)
        self._note(key, job)
        return job

    def _answer(self, job: str) -> Any:
        """The answer of a job; None if the server doesn't know the job."""
        backend = _backend(self.envoy.to_model_key(), self.url, job)
        status, since = None, time.monotonic()
        while (found := backend()) is None:
            now = time.monotonic()
            if backend.status != status:
                status, since = backend.status, now
            if status is None and now - since > 5:
                return None
            if now - since > PATIENCE:
                raise TimeoutError(
                    f"its job is {status and status.name} for {PATIENCE / 60:.0f} minutes; its "
                    "id is kept: the same command asks for the answer again"
                )
            time.sleep(POLL)
        return found["found"]

    def _journal(self) -> dict[str, str]:
        if self.journal is None or not self.journal.is_file():
            return {}
        return json.loads(self.journal.read_text())

    def _note(self, key: str, job: str | None) -> None:
        if self.journal is None:
            return
        jobs = self._journal()
        if job is None:
            jobs.pop(key, None)
        else:
            jobs[key] = job
        part = self.journal.with_suffix(".part")
        part.write_text(json.dumps(jobs))
        part.replace(self.journal)


def _envoy(name: str, tokenizer: Any, adapter: str | None) -> Any:
    """The model without its weights, as nnsight addresses it. The id of a folder is its path."""
    import nnsight
    from nnsight.modeling import huggingface

    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    folder = Path(name).is_dir()
    repo, _, revision = (name, "", "") if folder else name.partition("@")
    huggingface._ID_CACHE[repo] = repo
    return nnsight.TransformersModel(
        repo,
        revision=revision or None,
        task="text-generation",
        tokenizer=tokenizer,
        attn_implementation="eager",
        peft=adapter,
    )


def _backend(model_key: str, url: str, job: str | None = None, env: Any = None) -> Any:
    from nnsight.intervention.backends.remote import RemoteBackend

    class Plain(RemoteBackend):
        """Reads tensors and plain data only, so that a server's pickle can't run code here."""

        def finalize(self, content: bytes) -> Any:
            import io

            import torch

            if self.compress:
                import zstandard

                content = zstandard.ZstdDecompressor().decompress(content)
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    backend = Plain(model_key, host=url, blocking=False, job_id=job, env=env)
    backend.api_key = _key(url)  # nnsight would fall back to the key that it has saved
    return backend


def _key(url: str) -> str:
    """The API key, if nobody else can read it on the way: over https, or to this machine. A study
    file may name any server."""
    where = urlsplit(url)
    private = where.scheme == "https" or where.hostname in LOOPBACK
    return os.environ.get("NDIF_API_KEY", "") if private else ""


@cache
def _shipment() -> tuple[str, dict[str, str], str]:
    """The text of landing.py, the text of each module that is sent, and a version with a digest of
    both."""
    root = Path(__file__).parents[1]
    files = [
        *(root / f"{name}.py" for name in ALONE),
        *(f for room in ROOMS for f in sorted((root / room).glob("*.py"))),
    ]
    sources = {
        ".".join(("mechforget", *file.relative_to(root).with_suffix("").parts)): file.read_text()
        for file in files
        if file.stem != "__init__"
    }
    text = Path(landing.__file__).read_text()
    digest = hashlib.sha256("".join([text, *sources.values()]).encode()).hexdigest()[:12]
    return text, sources, f"mechforget {__version__} {digest}"


def _digest(question: Any, name: str) -> str:
    """A digest of a question, which is the same in every process."""
    import torch

    found = hashlib.sha256(f"{name} {_shipment()[2]}".encode())

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(str((value.dtype, tuple(value.shape))).encode())
            found.update(value.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        elif isinstance(value, tuple | list):
            for one in value:
                add(one)
        elif isinstance(value, dict):
            for key in sorted(value):
                add((key, value[key]))
        else:
            found.update(repr(value).encode())

    add(question)
    return found.hexdigest()[:24]


def _read(found: Any) -> Any:
    try:
        return landing.unpack(found)
    except Exception as error:  # whatever a server makes up
        raise ModelError(f"its answer can't be read ({one_line(error)}): mend --server") from error


def _cause(error: Exception) -> BaseException | None:
    """The error of httpx beneath one of nnsight's, if there is one; a failed job's has none."""
    from nnsight.intervention.backends.remote import RemoteError

    return error.__cause__ if isinstance(error, RemoteError) else error


def _away(error: Exception) -> bool:
    """Whether only the connection failed, so that the job may still be running and its answer may
    come."""
    import httpx

    cause = _cause(error)
    if isinstance(cause, httpx.HTTPStatusError):
        return cause.response.status_code >= 500
    return isinstance(cause, httpx.TransportError)


def _said(error: Exception) -> str:
    """An error in one line, without our API key."""
    import httpx

    if isinstance(error, MechforgetError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "validation error" in lines[0]:  # pydantic's, of what came in an answer's place
        return "what answers there is no NDIF server: want the URL that remote.serve ended with"
    text = lines[-1] if lines else type(error).__name__
    text = re.sub(r"^(Failed to send request|mechforget\.errors\.\w+): ", "", text)
    cause = _cause(error)
    page = cause is error or "<html" in str(error).lower()
    if page and isinstance(cause, httpx.HTTPStatusError):
        text = f"{cause.response.status_code} {cause.response.reason_phrase}"
    key = os.environ.get("NDIF_API_KEY")  # a server may quote it
    return (text.replace(key, "(the key)") if key else text)[:300]
