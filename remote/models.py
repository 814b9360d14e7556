"""Which models a server is asked for: local folders and hub ids, seen to be there beforehand; and
which adapters of theirs."""

import json
import sys
from pathlib import Path

from mechforget.checkpoints import adapter
from mechforget.checkpoints import folder as files
from remote import ServerError


def key(model: str, *, hub: bool) -> str:
    """What nnsight's client calls the model: `TransformersModel(…, task="text-generation")`.

    A folder is known by its full path. Raises: ServerError: there is no such model, it isn't
    safetensors, or, without `hub`, it would have to be downloaded. CheckpointError: its files don't
    hold exactly the model's tensors."""
    name, _, revision = model.partition("@")
    folder = Path(model).expanduser()
    if folder.is_dir():
        _check(folder.resolve(), model)
        name, revision = str(folder.resolve()), ""
        if "|" in name:
            raise ServerError(f"{model}: a folder with '|' in its path can't be served: rename it")
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ServerError(f"{model}: no such folder; want one with config.json and safetensors")
    elif not hub:
        _check(_cached(name, revision), model)
    data = {"repo_id": name, "revision": revision or None, "task": "text-generation"}
    return f"nnsight.modeling.transformers.TransformersModel:{json.dumps(data)}"


def name(key: str) -> str:
    model = json.loads(key.partition(":")[2])
    return model["repo_id"] + (f"@{model['revision']}" if model["revision"] else "")


def is_adapter(model: str) -> bool:
    return (Path(model).expanduser() / adapter.CONFIG).is_file()


def base(model: str, keys: list[str]) -> tuple[str, str]:
    """An adapter's full path, and which of these keys is its base's.

    Raises: CheckpointError: it isn't one that a served model can wear. ServerError: its base isn't
    among them."""
    folder = Path(model).expanduser().resolve()
    adapter.check_files(folder)
    adapter.check_wearable(folder)
    wanted, revision = adapter.base_of(folder)
    if Path(wanted).is_dir():
        wanted = str(Path(wanted).resolve())
    wanted += f"@{revision}" if revision else ""
    for key in keys:
        if name(key) == wanted:
            return str(folder), key
    raise ServerError(f"{model} is an adapter of {wanted}, which isn't served: name that too")


def _check(folder: Path, model: str) -> None:
    if not (folder / "config.json").is_file():
        raise ServerError(f"{model}: no config.json in {folder}; want a checkpoint's folder")
    if not any(folder.glob("*.safetensors")):
        raise ServerError(
            f"{model}: no *.safetensors in {folder}; weights in pickles aren't served: save it"
            " with save_pretrained"
        )
    if "quantization_config" not in files.json_object(folder / "config.json"):
        files.check(folder)


def _cached(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except Exception:
        at = f" --revision {revision}" if revision else ""
        raise ServerError(
            f"{name}: neither a folder nor in the hub's cache: fetch it with"
            f" `hf download {name}{at}`, or let the server do it with --hub"
        ) from None


if __name__ == "__main__":  # python -m remote.models PRE POST: their keys, for compose.yaml
    sys.stdout.write("|".join(key(model, hub=True) for model in sys.argv[1:]) + "\n")
