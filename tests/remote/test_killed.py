"""A study on a server, with the model's process and the client killed in the middle of it."""

import os
import signal

import numpy as np
import psutil

from mechforget.study.store import Store
from tests import held
from tests.measures import toy

# Stops with two chunks of a sweep kept, before the next question and after it, and with five.
IN_A_SWEEP = """
from pathlib import Path
from mechforget.models.remote import Remote
out = Path(sys.argv[sys.argv.index("--out") + 1])
send, answer, due = Remote._send, Remote._answer, [("send", 2), ("answer", 2), ("answer", 5)]
def stop(where):
    kept = len(list(out.glob("parts/*patching*/*.zarr")))
    if due and where == due[0][0] and kept >= due[0][1]:
        del due[0]
        hold()
Remote._send = lambda *given: (stop("send"), send(*given))[1]
Remote._answer = lambda *given: (stop("answer"), answer(*given))[1]
"""
FEW = ("--measures", "forgetting,patching", "--sites", "z,mlp_out", "--memory", "0.0004")


def compare(server, task, out, *options, code=""):
    words = ["compare", server.pre, server.post, "--task", task, "--out", out, *FEW, *options]
    return held.start(code + held.COMMAND, *words)


def models(server):
    """The processes that hold models, among those that this server started."""
    (ray,) = [p for p in server.record.processes if p.name == "ray"]
    return [
        p.pid
        for p in psutil.Process(ray.pid).children(recursive=True)
        if p.status() != psutil.STATUS_ZOMBIE and "ray::ModelActor" in p.cmdline()[:1]
    ]


def test_what_is_killed_in_a_sweep_goes_on_with_nothing_lost_and_nothing_twice(server, tmp_path):
    """Catches a study that ends with its server's process, a chunk that is counted twice, a job
    whose answer is lost, and numbers that a restart changed."""
    task, out, want = tmp_path / "task.csv", tmp_path / "run", tmp_path / "local"
    toy.task().rows[["prompt", "answer", "wrong"]].to_csv(task, index=False)
    served = ("--backend", "remote", "--server", server.url)

    client = compare(server, task, out, *served, code=IN_A_SWEEP)
    held.until_held(client)
    first = models(server)
    assert len(first) == 2
    for pid in first:
        os.kill(pid, signal.SIGSTOP)  # so that the next question can't be answered
    held.go_on(client)
    held.until_held(client)
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    held.go_on(client)  # it waits, and asks again
    held.until_held(client)
    assert not set(models(server)) & set(first)
    client.kill()
    client.communicate()
    assert len(list(out.glob("parts/*patching*/*.zarr"))) >= 5

    for child in (compare(server, task, out, *served), compare(server, task, want)):
        said = child.communicate()
        assert child.returncode == 0, said
    found, local = Store(out), Store(want)
    assert found.finished == local.finished
    for name in ("patching/z", "patching/mlp_out"):
        effect = found.get(name).effect
        np.testing.assert_array_equal(effect.prompt, range(14))
        np.testing.assert_allclose(effect, local.get(name).effect, atol=1e-5)
