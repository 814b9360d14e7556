"""python -m remote.check URL PRE POST: does a server compute what this machine computes?

Two small checkpoints, served at URL, are also loaded here with plain Hugging Face. Every way in
which a study uses a server is tried once. The last line says `all equal`, or it exits with 1.
"""

import subprocess
import sys
import time
from pathlib import Path

import nnsight
import torch
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.modeling import huggingface
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = ["The capital of France is", "The currency of Japan is"]
LAYER = 1
ENOUGH = 1e-4  # float32 on both sides; other versions and threads give 1e-6


def client(url: str, model: str) -> nnsight.TransformersModel:
    """The served model without its weights. A folder is its own id, as the server has it."""
    nnsight.CONFIG.API.HOST = url
    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    huggingface._ID_CACHE[model] = model
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="right")
    return nnsight.TransformersModel(
        model, task="text-generation", tokenizer=tokenizer, attn_implementation="eager"
    )


def result(url: str, job: str) -> dict:
    """What a non-blocking job saved; any process may ask, with nothing but the id."""
    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    backend = RemoteBackend("", host=url, blocking=False, job_id=job)
    while (found := backend()) is None:
        time.sleep(0.1)
    return found


def local(model: str, donor: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and what enters LAYER's o_proj, whose first half is `donor`'s if there is one."""
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="right")
    plain = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
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
        logits = plain(**tokenizer(PROMPTS, return_tensors="pt", padding=True)).logits
    return logits, seen[0]


def check(url: str, pre_path: str, post_path: str) -> bool:
    pre, post = client(url, pre_path), client(url, post_path)
    want, z_want = local(pre_path)
    with pre.trace(PROMPTS, remote=True):
        z = pre.model.layers[LAYER].self_attn.o_proj.input.save()
        logits = pre.lm_head.output.save()
    well = [_same("trace", logits, want), _same("donor", z, z_want)]

    half, (want, _) = z.shape[-1] // 2, local(post_path, z_want)
    with post.session(remote=True):
        found = nnsight.save([])
        with post.trace(PROMPTS):
            x = post.model.layers[LAYER].self_attn.o_proj.input.clone()
            x[..., :half] = z[..., :half]
            post.model.layers[LAYER].self_attn.o_proj.input = x
            found.append(post.lm_head.output)
    well.append(_same("session", found[0], want))

    with pre.trace(PROMPTS, remote=True, blocking=False) as tracer:
        post_logits = pre.lm_head.output.save()  # noqa: F841  # the job's result has its name
    job = tracer.backend.job_id
    asked = [sys.executable, "-m", "remote.check", "--job", url, job]
    other = subprocess.run(asked, capture_output=True, text=True)
    mean = float(other.stdout or "nan")
    well.append(_same("other process", torch.tensor(mean), logits.double().mean()))

    try:
        with pre.trace(PROMPTS, remote=True):
            x = pre.model.layers[LAYER].self_attn.o_proj.input
            x.requires_grad_(True)
            loss = pre.lm_head.output.sum()
            with loss.backward():
                gradient = x.grad.save()
        print(f"{'gradients':<15}{tuple(gradient.shape)}")
    except RemoteError as error:  # the sandbox has none
        print(f"{'gradients':<15}none: {str(error).strip().splitlines()[-1]}")
    return all(well)


def _same(name: str, came: torch.Tensor, want: torch.Tensor) -> bool:
    off = (came.double() - want.double()).abs().max().item()
    print(f"{name:<15}differs by {off:.1e}")
    return off < ENOUGH


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit("remote.check: want URL PRE POST: python -m remote.check http://127.0.0.1:5001 …")
    if sys.argv[1] == "--job":
        (value,) = result(*sys.argv[2:]).values()
        print(value.double().mean().item())
        return
    url, *models = sys.argv[1:]
    if check(url, *(str(Path(m).resolve()) if Path(m).is_dir() else m for m in models)):
        print("all equal")
    else:
        sys.exit("remote.check: the server computes something else")


if __name__ == "__main__":
    main()
