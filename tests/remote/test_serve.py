"""A real server on this machine's CPU: what it answers, what it refuses, what it lets see."""

import io
import json
import pickle
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import httpx
import pytest
import torch
import websocket
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechforget.errors import CheckpointError
from remote import CHECKOUT, ServerError, check, health, models
from tests.remote.server import LIMIT, serve
from tests.tiny import save_adapter, save_tiny

REFUSED = """  # a file: nnsight sends the source of a block
import json, sys, torch, nnsight
from nnsight.modeling import huggingface
from remote.check import client
url, model, post, served = sys.argv[1:]

def another():
    found = client(url, model)
    huggingface._ID_CACHE[model] = "org/other"
    return found

def revision():
    found = client(url, model)
    found.revision = "v2"
    return found

def code():
    found = client(url, model)
    found.kwargs["trust_remote_code"] = True
    return found

def adapter():
    found = client(url, model)
    found.peft = "org/adapter"
    return found

def of_another():
    found = client(url, post)
    found.peft = served
    return found

said = {}
for make in (another, revision, code, adapter, of_another):
    found = make()
    try:
        with found.trace("a", remote=True):
            x = found.lm_head.output.save()
    except Exception as error:
        said[make.__name__] = type(error).__name__ + ": " + str(error)

found = client(url, model)
try:
    with found.session(remote=True):
        found.load_adapter("org/adapter")
        with found.trace("a"):
            x = found.lm_head.output.save()
except Exception as error:
    said["by code"] = str(error)

z = torch.randn(10_000_000)
try:
    with found.trace("a", remote=True):
        x = nnsight.save(z.sum().item())
except Exception as error:
    said["large"] = str(error)
print(json.dumps(said))
"""


def client(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=CHECKOUT,
        env={"PYTHONPATH": str(CHECKOUT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_a_client_gets_what_plain_hugging_face_computes(server):
    said = client("-m", "remote.check", server.url, server.pre, server.post)
    assert said.stdout.endswith("all equal\n"), said.stdout + said.stderr
    assert "gradients      (2, " in said.stdout


def test_a_check_computes_in_the_servers_dtype(tmp_path):
    """Catches a checkpoint in bfloat16 that is computed so here and in float32 on a server's CPU,
    and prompts of two lengths that no padding makes one."""
    folder = save_tiny(tmp_path / "m")
    plain = AutoModelForCausalLM.from_pretrained(folder).to(torch.bfloat16)
    plain.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert check.tokenizer(str(folder)).pad_token == tokenizer.eos_token
    logits, z = check.local(str(folder), torch.float32)
    assert logits.dtype == z.dtype == torch.float32
    ids = tokenizer(check.PROMPTS[0], return_tensors="pt").input_ids
    want = plain.float()(ids).logits[0]
    torch.testing.assert_close(logits[0, : len(want)], want, atol=check.ENOUGH, rtol=0)


def test_a_check_reads_no_pickled_code():
    """Catches a server that runs code on the machine of who checks it."""
    buffer = io.BytesIO()
    torch.save({"found": subprocess.Popen}, buffer)
    plain = check.Plain("http://127.0.0.1:9", "", "job")
    plain.compress = False
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        plain.finalize(buffer.getvalue())


def test_status_names_every_service_and_model(server):
    said = serve("--status", "--dir", server.folder)
    assert said.returncode == 0, said.stdout + said.stderr
    lines = [line.split()[:2] for line in said.stdout.splitlines()]
    names = ["redis", "store", "ray", "dispatcher", "api"]
    names += ["model", "adapter", "adapter", "model", "requests"]
    assert lines == [[name, "up"] for name in names]
    assert f"{server.adapter} of {server.pre}\n" in said.stdout
    assert str(server.pre) in said.stdout and str(server.post) in said.stdout


def test_models_as_a_client_sees_them(server):
    status = health.ask(server.url, "/status")
    assert [m["name"] for m in status["served"]] == [str(server.pre), str(server.post)]
    assert status["served"][0]["adapters"] == [str(server.adapter), str(server.other)]
    assert status["served"][1]["adapters"] == []
    assert {d["repo_id"] for d in status["deployments"].values()} == {
        str(server.pre),
        str(server.post),
    }
    (deployed, _) = status["deployments"].values()
    assert deployed["model_key"] in [
        models.key(str(p), hub=False) for p in (server.pre, server.post)
    ]
    assert deployed["dtype"] == "float32" and deployed["trusted"] is False
    packages = health.ask(server.url, "/env")["packages"]
    assert packages["nnsight"] == "0.8.0"


def test_a_refusal_says_why(server, tmp_path):
    (tmp_path / "refused.py").write_text(REFUSED)
    words = (server.url, server.pre, server.post, server.adapter)
    said = client(tmp_path / "refused.py", *words)
    answers = json.loads(said.stdout or said.stderr)
    served = f"served here, only: {server.pre}, {server.post}."
    assert f"RemoteError: Failed to send request: org/other isn't {served}" in answers["another"]
    assert f"{server.pre}@v2 isn't {served}" in answers["revision"]
    assert f"{server.pre} is served as another kind of model: came " in answers["code"]
    named = f"served with {server.pre}, only: {server.adapter}, {server.other}. Start"
    assert f"adapter org/adapter isn't {named}" in answers["adapter"]
    assert answers["by code"].startswith(f"adapter org/adapter isn't {named}")
    assert f"{server.adapter} isn't served with {server.post}, only: none" in answers["of_another"]
    assert f"MB, want at most {LIMIT}: send less" in answers["large"]


def test_a_page_in_a_browser_cannot_send_code(server):
    """Catches any site's page that posts a request to a port of its reader's own machine."""
    for origin in ("https://a.page", server.url, "null"):
        headers = {"Origin": origin}
        assert httpx.post(server.url + "/request", headers=headers).status_code == 403
        asked = httpx.options(server.url + "/request", headers=headers)
        assert asked.status_code == 403 and "access-control-allow-origin" not in asked.headers
    assert httpx.post(server.url + "/request").status_code == 422  # nothing in it
    socket = server.url.replace("http", "ws") + "/subscribe"
    with pytest.raises(websocket.WebSocketBadStatusException, match="403"):
        websocket.create_connection(socket, origin="https://a.page")
    websocket.create_connection(socket).close()  # as nnsight's client does


def test_an_unknown_job_has_no_result(server):
    for path in ("/response/nothing", "/result/nothing"):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(server.url + path)
        assert error.value.code == 404


def test_every_port_is_on_loopback(server):
    ours = {p for process in server.record.processes for p in process.members()}
    sockets = set()
    for pid in ours:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            target = str(file.readlink()) if file.is_symlink() else ""
            if target.startswith("socket:["):
                sockets.add(target[8:-1])
    heard = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:  # listens
                heard.append(fields[1].partition(":")[0])
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert len(heard) > 10 and set(heard) <= loopback


def test_one_folder_and_one_port_hold_one_server(server):
    words = (server.pre, "--device", "cpu", "--detach")
    said = serve(*words, "--dir", server.folder)
    assert said.returncode == 2 and "a server runs from" in said.stderr
    said = serve(*words, "--dir", server.folder / "other", "--port", server.url.rpartition(":")[2])
    assert said.returncode == 2 and "is taken; want a free --port" in said.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "no model named"),
        (["nowhere/at/all"], "no such folder"),
        (["org/name"], "neither a folder nor in the hub's cache: fetch it with `hf download"),
        (["--port", "0"], "argument --port: came '0', want a whole number from 1 to 65535"),
        (["--threads", "x"], "argument --threads: came 'x', want a whole number"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["x", "--host", "0.0.0.0"], "--host 0.0.0.0 lets others in: say --trust sandbox"),
        (["x", "--host", "example.org"], "--host example.org: want an address of this machine"),
        (["x", "--max-request-mb", "900"], "--max-request-mb 900: redis holds 500 at most"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_wrong_word_is_one_line(words, why, tmp_path):
    said = serve(*words, "--dir", tmp_path)
    assert said.returncode == 2 and why in said.stderr
    assert said.stderr.count("\n") == 1 and said.stdout == ""


def test_adapters_that_no_model_here_wears(tmp_path):
    base, keys = save_tiny(tmp_path / "base"), []
    adapter = save_adapter(tmp_path / "adapter", base)
    assert models.is_adapter(str(adapter)) and not models.is_adapter(str(base))
    with pytest.raises(ServerError, match=f"an adapter of {base}, which isn't served: name that"):
        models.base(str(adapter), keys)
    keys.append(models.key(str(base), hub=False))
    assert models.base(str(adapter), keys) == (str(adapter), keys[0])
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin"):
        models.base(str(adapter), keys)


def test_folders_that_hold_no_model_to_serve(tmp_path):
    with pytest.raises(ServerError, match=r"no config\.json"):
        models.key(str(tmp_path), hub=False)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_text("")
    with pytest.raises(ServerError, match="weights in pickles aren't served"):
        models.key(str(tmp_path), hub=False)
    folder = save_tiny(tmp_path / "model")
    data = json.loads(models.key(str(folder), hub=False).partition(":")[2])
    assert data == {"repo_id": str(folder), "revision": None, "task": "text-generation"}
    data = json.loads(models.key("org/name@v1", hub=True).partition(":")[2])
    assert (data["repo_id"], data["revision"]) == ("org/name", "v1")


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "llama4_text"])
def test_a_model_with_missing_weights_is_not_served(family, tmp_path):
    """Catches a server whose model has random numbers where its files have none: transformers only
    warns of them, and no proof can see it."""
    folder = save_tiny(tmp_path / "model", family)
    models.key(str(folder), hub=False)
    stored = load_file(folder / "model.safetensors")
    name = next(n for n in stored if n.endswith("layers.1.self_attn.k_proj.weight"))
    del stored[name]
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"1 missing, e.g. {name}; want exactly the model"):
        models.key(str(folder), hub=False)
