"""python -m remote.check URL PRE POST: does a server compute what this machine computes?

Two small checkpoints, served at URL, are also loaded here with plain Hugging Face. Every way in
which a study uses a server is tried once. The last line says `all equal`, or it exits with 1.
"""

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import nnsight
import torch
import zstandard
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.modeling import huggingface
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from remote import health

PROMPTS = ["The capital of France is", "The currency of Japan is"]
LAYER = 1
ENOUGH = 1e-4  # float32 on both sides; other versions and threads give 1e-6
HALF = 5e-2  # of the largest value, in half precision: eight bits

nnsight.CONFIG.APP.REMOTE_LOGGING = False


class Plain(RemoteBackend):
    """Asks for the answer until it is there, as a study does; reads tensors and plain data only."""

    def __init__(self, url: str, model_key: str, job: str | None = None) -> None:
        super().__init__(model_key, host=url, blocking=False, job_id=job)
        self.api_key = os.environ.get("NDIF_API_KEY", "")  # not nnsight's saved one

    def finalize(self, content: bytes) -> dict:
        if self.compress:
            content = zstandard.ZstdDecompressor().decompress(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def result(self) -> dict:
        """What the job saved. Any process that knows the job's id may ask for it."""
        while (found := self()) is None:
            time.sleep(0.1)
        return found


def named(model: str) -> tuple[str, str | None]:
    """A folder or hub id (org/name), and its revision."""
    if Path(model).is_dir():
        return model, None
    name, _, revision = model.partition("@")
    return name, revision or None


def tokenizer(model: str) -> PreTrainedTokenizerBase:
    name, revision = named(model)
    found = AutoTokenizer.from_pretrained(name, revision=revision, padding_side="right")
    if found.pad_token is None:
        found.pad_token = found.eos_token
    return found


def client(url: str, model: str) -> nnsight.TransformersModel:
    """The model without its weights, as nnsight addresses it. The id of a folder is its path."""
    nnsight.CONFIG.API.HOST = url
    name, revision = named(model)
    huggingface._ID_CACHE[name] = name
    return nnsight.TransformersModel(
        name,
        revision=revision,
        task="text-generation",
        tokenizer=tokenizer(model),
        attn_implementation="eager",
    )


def dtypes(url: str) -> dict[str, torch.dtype]:
    """The dtype of each model on the server, by its key: another dtype gives other numbers."""
    status = health.ask(url, "/status")
    if not isinstance(status, dict):
        sys.exit(
            f"remote.check: {url}: no server answers: want the URL that remote.serve ended with"
        )
    return {d["model_key"]: getattr(torch, d["dtype"]) for d in status["deployments"].values()}


def local(
    model: str, dtype: torch.dtype, donor: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits, and the input of LAYER's o_proj; its first half is `donor`'s if one is given."""
    name, revision = named(model)
    plain = AutoModelForCausalLM.from_pretrained(
        name, revision=revision, dtype=dtype, attn_implementation="eager"
    )
    seen = []

    def hook(module, args):
        x = args[0].clone()
        half = x.shape[-1] // 2
        if donor is not None:
            x[..., :half] = donor[..., :half]
        seen.append(x)
        return (x,)

    plain.model.layers[LAYER].self_attn.o_proj.register_forward_pre_hook(hook)
    with torch.no_grad():
        logits = plain(**tokenizer(model)(PROMPTS, return_tensors="pt", padding=True)).logits
    return logits, seen[0]


def check(url: str, pre_path: str, post_path: str) -> bool:
    held = dtypes(url)
    pre, post = client(url, pre_path), client(url, post_path)
    pre_key, post_key = pre.to_model_key(), post.to_model_key()
    for key in (pre_key, post_key):
        if key not in held:
            sys.exit(f"remote.check: {key} isn't served there, only: {', '.join(held)}")

    want, z_want = local(pre_path, held[pre_key])
    backend = Plain(url, pre_key)
    with pre.trace(PROMPTS, backend=backend):
        z = pre.model.layers[LAYER].self_attn.o_proj.input.save()
        logits = pre.lm_head.output.save()
    found = backend.result()
    z, logits = found["z"], found["logits"]
    well = [_same("trace", logits, want), _same("donor", z, z_want)]

    half, (want, _) = z.shape[-1] // 2, local(post_path, held[post_key], z_want)
    backend = Plain(url, post_key)
    with post.session(backend=backend):
        found = nnsight.save([])
        with post.trace(PROMPTS):
            x = post.model.layers[LAYER].self_attn.o_proj.input.clone()
            x[..., :half] = z[..., :half]
            post.model.layers[LAYER].self_attn.o_proj.input = x
            found.append(post.lm_head.output)
    well.append(_same("session", backend.result()["found"][0], want))

    backend = Plain(url, pre_key)
    with pre.trace(PROMPTS, backend=backend):
        post_logits = pre.lm_head.output.save()  # noqa: F841  # the job's result has its name
    asked = [sys.executable, "-m", "remote.check", "--job", url, backend.job_id]
    other = subprocess.run(asked, capture_output=True, text=True)
    mean = float(other.stdout or "nan")
    well.append(_same("other process", torch.tensor(mean), logits.double().mean()))

    backend = Plain(url, pre_key)
    with pre.trace(PROMPTS, backend=backend):
        x = pre.model.layers[LAYER].self_attn.o_proj.input
        x.requires_grad_(True)
        loss = pre.lm_head.output.sum()
        with loss.backward():
            gradient = x.grad.save()  # noqa: F841  # as above
    try:
        print(f"{'gradients':<15}{tuple(backend.result()['gradient'].shape)}")
    except RemoteError as error:  # the sandbox has none
        print(f"{'gradients':<15}none: {str(error).strip().splitlines()[-1]}")
    return all(well)


def _same(name: str, came: torch.Tensor, want: torch.Tensor) -> bool:
    off = (came.double() - want.double()).abs().max().item()
    print(f"{name:<15}differs by {off:.1e}")
    return off < (ENOUGH if want.dtype.itemsize >= 4 else HALF * want.abs().max().item())


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit("remote.check: want URL PRE POST: python -m remote.check http://127.0.0.1:5001 …")
    if sys.argv[1] == "--job":
        url, job = sys.argv[2:]
        (value,) = Plain(url, "", job).result().values()
        print(value.double().mean().item())
        return
    url, *models = sys.argv[1:]
    if check(url, *(str(Path(m).resolve()) if Path(m).is_dir() else m for m in models)):
        print("all equal")
    else:
        sys.exit("remote.check: the server computes something else")


if __name__ == "__main__":
    main()
