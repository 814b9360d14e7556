"""A served model against the same model here: a real server, a real request for every sweep."""

import copy
import io
import json
import os
import pickle
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import nnsight
import numpy as np
import pytest
import torch
from nnsight.intervention.backends.remote import RemoteError
from transformers import AutoTokenizer

from mechforget import checkpoints, models
from mechforget.errors import ModelError, SweepError
from mechforget.models import landing, remote
from mechforget.models.protocol import Proof
from mechforget.models.sites import Edit
from mechforget.study.run import run
from mechforget.study.settings import study
from mechforget.sweeps.donor import Donor
from mechforget.sweeps.plan import graft, single
from mechforget.sweeps.run import sweep
from mechforget.views.bundle import bundle
from remote.models import key
from tests.remote.server import server  # noqa: F401 (a fixture)
from tests.sweeps.test_run import encoded
from tests.tiny import save_tiny


@pytest.fixture(scope="module", autouse=True)
def _fresh():
    models.opening._open.clear()


def served(url, folder):
    return remote.Remote(str(folder), AutoTokenizer.from_pretrained(folder), url)


@pytest.fixture
def pair(server):  # noqa: F811
    return [served(server.url, folder) for folder in (server.pre, server.post)]


def local(folder):
    return models.open(checkpoints.open(folder))


@pytest.mark.parametrize("site", ["z", "head_out", "pattern", "v", "resid_mid", "mlp_out"])
def test_a_sweep_on_the_server_is_the_sweep_here(server, pair, site):  # noqa: F811
    """Catches values mixed up on the way, and an engine that does otherwise over there."""
    variants, batch = single(pair[0].spec, site), encoded(0)
    found = sweep(pair[1], batch, Donor.of(pair[0], batch, variants), variants)
    here = [local(folder) for folder in (server.pre, server.post)]
    want = sweep(here[1], batch, Donor.of(here[0], batch, variants), variants)
    np.testing.assert_allclose(found[0], want[0], atol=1e-5)
    np.testing.assert_array_equal(found[1], want[1])
    assert abs(found[0][1:] - found[0][0]).max() > 1e-3


def test_the_servers_arithmetic_is_known(server, pair, tmp_path):  # noqa: F811
    """Catches a report that gives --dtype's name to numbers that a server made in another."""
    for dtype in ("float32", "bfloat16"):
        how = models.Loading("nnsight", dtype=dtype)
        assert models.open(checkpoints.open(server.pre), how).dtype == dtype
    assert [model.dtype for model in pair] == ["float32", "float32"]
    task = tmp_path / "task.csv"
    task.write_text("prompt,answer\nThe capital of,France\nThe currency of,Japan\n")
    given = {"pre": str(server.pre), "post": str(server.post), "task": str(task)}
    given |= {"backend": "remote", "server": server.url, "measures": ("forgetting",)}
    for dtype, notes in (("float32", 0), ("bfloat16", 1)):
        store = run(study(**given, dtype=dtype), tmp_path / dtype)
        made = bundle(store)["meta"]
        assert made["dtype"] == "float32"
        assert len([n for n in made["notes"] if n.startswith("arithmetic is float32")]) == notes


def test_one_sweep_is_one_request(pair, monkeypatch):
    """Catches a request for every head, which would queue for hours."""
    sent = []
    send = remote.Remote._send
    monkeypatch.setattr(
        remote.Remote, "_send", lambda self, *args: sent.append(self) or send(self, *args)
    )
    variants, batch = single(pair[0].spec, "z"), encoded(0)
    sweep(pair[1], batch, Donor.of(pair[0], batch, variants), variants)
    assert sent == [pair[0], pair[1]]


def test_weights_are_not_grafted_over_the_wire(pair):
    """Catches a graft that silently takes the recipient's own weights, where the other checkpoint's
    files aren't to be had (hosted NDIF; on a server of one's own they are)."""
    variants = [graft(pair[0].spec, 0, 1, "all")]
    pair[1].own = False
    with pytest.raises((ModelError, SweepError), match="only where both checkpoints are"):
        sweep(pair[1], encoded(0), Donor.of(pair[0], encoded(0), variants), variants)


def test_values_travel_in_parts_and_in_half_precision(server, pair, monkeypatch):  # noqa: F811
    """Catches a request that a server refuses as too large, variants out of order after it, and
    values that overflow in half precision."""
    variants, batch, sent = single(pair[0].spec, "head_out"), encoded(0), []
    want = sweep(pair[1], batch, Donor.of(pair[0], batch, variants), variants)
    ask = remote.Remote.ask
    monkeypatch.setattr(
        remote.Remote,
        "ask",
        lambda self, *args, **how: sent.append(args) or ask(self, *args, **how),
    )
    one = 3 * 9 * 32 * 4  # bytes of one head's output
    monkeypatch.setattr("mechforget.sweeps.run.REQUEST", 5 * one)
    found = sweep(pair[1], batch, Donor.of(pair[0], batch, variants), variants)
    assert [len(args[3]) for args in sent[1:]] == [5, 5, 2]
    # A product of another number of rows may sum in another order: some ten of them in a row, of
    # values up to ten, each rounded to 1e-7 of itself. Another variant's values differ by 1e-3.
    np.testing.assert_allclose(found[0], want[0], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(found[1], want[1])
    assert abs(found[0][1:] - np.roll(found[0][1:], 1, 0)).max(1).min() > 1e-3
    sent.clear()
    pair[0].half_donors = True
    found = sweep(pair[1], batch, Donor.of(pair[0], batch, variants), variants)
    assert [len(args[3]) for args in sent[1:]] == [10, 2]
    assert 0 < abs(found[0] - want[0]).max() < 1e-2


def test_a_quoted_key_is_not_repeated(monkeypatch):
    """Catches a secret in an error that a server wrote."""
    monkeypatch.setenv("NDIF_API_KEY", "s3cret-key")
    said = remote._said(RuntimeError("Failed to send request: Invalid API key: 's3cret-key'."))
    assert said == "Invalid API key: '(the key)'."


ASKS = """
import sys, time
from pathlib import Path
from transformers import AutoTokenizer
from mechforget.models import remote
from mechforget.sweeps.plan import single
from mechforget.sweeps.donor import capture, Donor
from mechforget.sweeps.run import sweep
from tests.sweeps.test_run import encoded
url, folder, journal = sys.argv[1:]
model = remote.Remote(folder, AutoTokenizer.from_pretrained(folder), url)
model.journal = Path(journal)
model._answer = lambda job: (print("sent", flush=True), time.sleep(60))
batch = encoded(0)
Donor.of(model, batch, single(model.spec, "z")).values
"""


def test_a_client_that_was_killed_finds_its_job_again(server, pair, tmp_path, monkeypatch):  # noqa: F811
    """Catches a question that is asked twice because nobody remembered the first time."""
    journal = tmp_path / "jobs.json"
    child = subprocess.Popen(
        [sys.executable, "-c", ASKS, server.url, str(server.pre), str(journal)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert child.stdout.readline() == "sent\n"
    child.kill()
    child.wait()
    assert len(json.loads(journal.read_text())) == 1
    pair[0].journal = journal
    monkeypatch.setattr(remote.Remote, "_send", None)  # nothing may be sent again
    variants, batch = single(pair[0].spec, "z"), encoded(0)
    found = Donor.of(pair[0], batch, variants)
    want = Donor.of(local(server.pre), batch, variants)
    for edit in (Edit(0, "z", 1), Edit(2, "z", 3)):
        torch.testing.assert_close(found.at(edit), want.at(edit))
    assert json.loads(journal.read_text()) == {}


def test_a_forgotten_job_is_asked_for_again(pair, tmp_path, monkeypatch):
    """Catches a client that waits for ever for a job that its server no longer has."""
    pair[0].journal = tmp_path / "jobs.json"
    batch = encoded(0)
    variants = single(pair[0].spec, "mlp_out")
    keys = []
    monkeypatch.setattr(remote, "_digest", lambda *_: keys.append("k") or "k")
    pair[0].journal.write_text(json.dumps({"k": "00000000-0000-0000-0000-000000000000"}))
    assert Donor.of(pair[0], batch, variants).values
    assert keys == ["k"]


def test_a_job_that_waits_too_long_is_kept(pair, tmp_path, monkeypatch):
    """Catches a queue that is waited in for ever, and one's place in it lost."""
    pair[0].journal = tmp_path / "jobs.json"
    batch = encoded(0)
    donor = Donor.of(pair[0], batch, single(pair[0].spec, "q"))
    asks = remote._backend

    class Queued:
        """A job that isn't done, however fast the server is."""

        status = None

        def __call__(self):
            return None

    def backend(key, url, job=None, env=None):
        return Queued() if job else asks(key, url, env=env)

    monkeypatch.setattr(remote, "_backend", backend)
    monkeypatch.setattr(remote, "PATIENCE", -1)
    with pytest.raises(ModelError, match="the same command asks for the answer again"):
        _ = donor.values
    assert len(json.loads(pair[0].journal.read_text())) == 1
    monkeypatch.setattr(remote, "PATIENCE", 60)
    monkeypatch.setattr(remote, "_backend", asks)
    monkeypatch.setattr(remote.Remote, "_send", None)  # nothing may be sent again
    assert donor.values and json.loads(pair[0].journal.read_text()) == {}


def test_what_is_not_served_is_said_at_once(server, tmp_path):  # noqa: F811
    """Catches a wait for a model that will never come, and a trace of nnsight's in the user's face."""
    other = save_tiny(tmp_path / "other", seed=5)
    with pytest.raises(ModelError, match="isn't served here, only: ") as caught:
        served(server.url, other)
    assert "\n" not in str(caught.value)


def failed(status, text="<html>\n<h1>a proxy's page</h1>\n</html>"):
    request = httpx.Request("GET", "http://x/response/0")
    response = httpx.Response(status, request=request, text=text)
    return httpx.HTTPStatusError("for more see a page", request=request, response=response)


def under(cause):
    """As nnsight raises it when it has sent a request."""
    error = RemoteError(f"Failed to send request: {cause}")
    error.__cause__ = cause
    return error


@pytest.fixture
def asking(tmp_path, monkeypatch):
    """asking(answers): what a client asks for, job by job, until one of them is plain data."""

    def ask(*answers):
        model = remote.Remote.__new__(remote.Remote)
        model.url, model.name, model.own, model.state = "http://x", "m", True, {}
        model.journal = tmp_path / "jobs.json"
        script, sent, polled = iter(answers), [], []

        def send(question, key):
            sent.append(f"job {len(sent)}")
            model._note(key, sent[-1])
            return sent[-1]

        def answer(job):
            polled.append(job)
            found = next(script)
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(model, "_send", send, raising=False)
        monkeypatch.setattr(model, "_answer", answer, raising=False)
        monkeypatch.setattr(remote.time, "sleep", lambda _: None)
        try:
            said = model.ask("f:g")
        except ModelError as error:
            said = str(error)
            assert "\n" not in said and said.startswith("http://x: m: ")
        return said, polled, list(json.loads(model.journal.read_text()).values())

    return ask


DONE = ("as it is", 1)
AWAY = [
    httpx.ReadTimeout("The read operation timed out"),
    httpx.RemoteProtocolError("Server disconnected without sending a response."),
    httpx.ConnectError("[Errno 111] Connection refused"),
    failed(502),
    under(failed(503)),
    under(httpx.ConnectError("")),
]


@pytest.mark.parametrize("error", AWAY, ids=lambda e: type(e.__cause__ or e).__name__)
def test_a_job_outlives_a_server_that_is_away(asking, error):
    """Catches work that is done twice because a proxy or the network had a bad moment."""
    assert asking(error, error, DONE) == (1, ["job 0"] * 3, [])
    said, polled, kept = asking(*[error] * remote.TRIES)
    assert set(polled) == {"job 0"} and kept == ["job 0"] and "html" not in said


def test_a_failed_job_is_not_asked_for_again(asking):
    """Catches minutes of asking for a job that failed in words like a network's, and an id that
    the same command would find again; and one that the server gave up, which does want another."""
    for error in (RemoteError("RuntimeError: lost connection"), failed(404), failed(403)):
        said, polled, kept = asking(error)
        assert polled == ["job 0"] and kept == []
    assert said == "http://x: m: 403 Forbidden"
    evicted = RemoteError("Replica was evicted. Please try again later.")
    assert asking(evicted, DONE) == (1, ["job 0", "job 1"], [])


@pytest.mark.parametrize(
    ("where", "given"),
    [
        ("subprocess:run", {"args": ("list", [("as it is", "touch"), ("as it is", "PWNED")])}),
        ("os:system", {"command": ("as it is", "touch PWNED")}),
        ("mechforget.models.landing:subprocess", {}),
        ("mechforget.models.remote:replace", {"obj": ("as it is", 1)}),
        ("mechforget.models.opening:open", {"checkpoint": ("as it is", 1)}),
        ("mechforget.models.remote:Spec", {}),
    ],
)
def test_an_answer_names_nothing_that_runs(asking, where, given, tmp_path, monkeypatch):
    """Catches a server that has the client call what it likes."""
    monkeypatch.chdir(tmp_path)
    said, _, kept = asking(("dataclass", where, given))
    assert f"its answer can't be read (TypeError: came {where}, want a dataclass of" in said
    assert kept == [] and not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("found", [5, (), "xy", ("tuple", 3), ("dataclass",), ("dict", [1])])
def test_a_malformed_answer_is_one_line(asking, found):
    """Catches a trace of ours in the face of who asked something that isn't our server."""
    assert "its answer can't be read (" in asking(found)[0]


def test_the_key_goes_only_where_it_is_safe(monkeypatch):
    """Catches a key that is sent to any server that a study file names, and one that nnsight
    remembers from elsewhere."""
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "saved")
    for given in ("given", ""):
        monkeypatch.setenv("NDIF_API_KEY", given)
        for url in (remote.HOSTED, "http://localhost:5001", "http://[::1]:1", "https://a.net"):
            assert remote._backend("k", url).api_key == given
        for url in ("http://a.net:5001", "http://127.0.0.1.a.net", "http://10.0.0.1:5001"):
            assert remote._backend("k", url).api_key == ""


def test_measured_gaps_are_no_part_of_a_question(tmp_path, monkeypatch):
    """Catches a job that isn't found again because the model, loaded anew, proved itself with
    other last digits."""
    folder, digests = save_tiny(tmp_path / "m"), []
    state = {"spec": local(folder).spec, "parallel": False, "dtype": "float32"}
    for gap in ("1e-7", "2e-7"):
        proofs = (Proof("logits", True, gap),)
        monkeypatch.setattr(remote, "described", lambda _, p=proofs: {**state, "proofs": p})
        model = served("http://x", folder)
        assert model.proofs == proofs
        monkeypatch.setattr(model, "_send", lambda _, key: digests.append(key) or "job")
        monkeypatch.setattr(model, "_answer", lambda _: DONE)
        model.ask("f:g")
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "state", [None, [], {"spec": 1}, {"proofs": (), "parallel": 0, "dtype": "x", "spec": 3}]
)
def test_a_description_of_another_form_is_one_line(state, tmp_path, monkeypatch):
    """Catches a traceback where a server of another version describes its model."""
    folder = save_tiny(tmp_path / "m")
    monkeypatch.setattr(remote, "described", lambda _: copy.copy(state))
    with pytest.raises(ModelError, match="describes it in another form"):
        served("http://x", folder)


ASKED_FOR = """
from mechforget import checkpoints, models
from mechforget.models import remote
from remote.check import client
remote._backend = lambda key, *_, **__: exit(print(key))
ref = "org/name@v1"
print(client("http://127.0.0.1:9", ref).to_model_key())
models.open(checkpoints.open(ref, weights=False), models.Loading("remote", server="http://x"))
"""


def test_a_revision_is_asked_for_by_its_servers_name(tmp_path):
    """Catches org/name@v1 that is taken for a repository of that name."""
    repository, commit = tmp_path / "models--org--name", "a" * 40
    save_tiny(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    child = subprocess.run(
        [sys.executable, "-c", ASKED_FOR],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert child.stdout.splitlines() == [key("org/name@v1", hub=True)] * 2, child.stderr


class Web(BaseHTTPRequestHandler):
    """Some web page, and no NDIF."""

    status = 200

    def do_GET(self):
        body = b"<html>\nhello\n</html>"
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


def test_a_wrong_address_is_said_at_once(tmp_path, monkeypatch):
    """Catches minutes of silence where nobody listens, and words of another package's about what a
    web page isn't; and a proxy's page in the place of what happened."""
    folder = save_tiny(tmp_path / "m")
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as web:
        url = f"http://127.0.0.1:{web.server_port}"
        threading.Thread(target=web.serve_forever, daemon=True).start()
        with pytest.raises(
            ModelError, match=f"{url}: .*what answers there is no NDIF server: want"
        ):
            served(url, folder)
        monkeypatch.setattr(Web, "status", 502)
        waits = []
        monkeypatch.setattr(remote.time, "sleep", waits.append)
        with pytest.raises(ModelError, match=f"{folder}: 502 Bad Gateway$"):
            served(url, folder)
        assert len(waits) == remote.TRIES - 1
        web.shutdown()
    monkeypatch.setattr(remote.time, "sleep", lambda _: pytest.fail("it waits"))
    with pytest.raises(ModelError, match="nobody answers there: start a server"):
        served(url, folder)


def test_another_version_is_said(server, monkeypatch):  # noqa: F811
    """Catches a client whose requests the server would misread."""
    from nnsight.intervention.backends import remote as theirs

    monkeypatch.setattr(theirs, "_NNSIGHT_VERSION", "0.5.0")
    with pytest.raises(ModelError, match=r"0\.8\.0") as caught:
        served(server.url, server.pre)
    assert "\n" not in str(caught.value) and "0.5.0" in str(caught.value)


def test_hosted_ndif_wants_a_key(monkeypatch, tmp_path):
    """Catches a request that leaves without one."""
    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    with pytest.raises(ModelError, match="set NDIF_API_KEY in the environment"):
        remote.Remote(str(tmp_path), None, None)


def test_a_servers_answer_cannot_run_code_here():
    """Catches a result that is unpickled as it comes."""

    class Hostile:
        def __reduce__(self):
            return (os.system, ("true",))

    buffer = io.BytesIO()
    torch.save({"found": Hostile()}, buffer)
    backend = remote._backend("a.B:{}", "http://127.0.0.1:9", "job")
    backend.compress = False
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        backend.finalize(buffer.getvalue())


def test_questions_come_out_as_they_went_in():
    """Catches a field, key or type that is lost between client and server."""
    batch = encoded(3)
    asked = (batch, [Edit(1, "z", np.int64(2), None)], {(0, "z"): torch.ones(2)}, frozenset("ab"))
    again = landing.unpack(landing.pack(asked))
    np.testing.assert_array_equal(again[0].ids, batch.ids)
    assert again[1] == [Edit(1, "z", 2, None)] and type(again[1][0].head) is int
    assert again[2][0, "z"].tolist() == [1, 1] and again[3] == {"a", "b"}
    buffer = io.BytesIO()
    torch.save(landing.pack(asked), buffer)
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
