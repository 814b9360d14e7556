"""A study on a server, with the model's process and the client killed in the middle of it."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil

from mechforget.study.store import Store
from tests.measures import toy

FEW = ("--measures", "forgetting,patching", "--sites", "z,mlp_out", "--memory", "0.0004")


def compare(server, task, out, *options):
    words = ["compare", server.pre, server.post, "--task", task, "--out", out, *FEW, *options]
    command = [sys.executable, "-m", "mechforget.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def models(server):
    """The processes that hold models, among those that this server started."""
    (ray,) = [p for p in server.record.processes if p.name == "ray"]
    return [
        p.pid
        for p in psutil.Process(ray.pid).children(recursive=True)
        if p.status() != psutil.STATUS_ZOMBIE and "ray::ModelActor" in p.cmdline()[:1]
    ]


def until_chunks(out, n, client):
    """Waits for n chunks of a sweep that isn't done."""
    for _ in range(6000):
        assert client.poll() is None, client.communicate()
        if len(list(out.glob("parts/*patching*/*.zarr"))) >= n:
            return
        time.sleep(0.02)
    raise AssertionError("no sweep was seen")


def test_what_is_killed_in_a_sweep_goes_on_with_nothing_lost_and_nothing_twice(server, tmp_path):
    """Catches a study that ends with its server's process, a chunk that is counted twice, a job
    whose answer is lost, and numbers that a restart changed."""
    task, out, want = tmp_path / "task.csv", tmp_path / "run", tmp_path / "local"
    toy.task().rows[["prompt", "answer", "wrong"]].to_csv(task, index=False)
    served = ("--backend", "remote", "--server", server.url)

    client = compare(server, task, out, *served)
    until_chunks(out, 2, client)
    first = models(server)
    assert len(first) == 2
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    until_chunks(out, 5, client)  # it waited, and asked again
    assert not set(models(server)) & set(first)
    client.kill()
    client.wait()
    assert len(list(out.glob("parts/*patching*/*.zarr"))) >= 5

    said = compare(server, task, out, *served)
    assert said.wait() == 0, said.communicate()
    assert compare(server, task, want).wait() == 0
    found, local = Store(out), Store(want)
    assert found.finished == local.finished
    for name in ("patching/z", "patching/mlp_out"):
        effect = found.get(name).effect
        np.testing.assert_array_equal(effect.prompt, range(14))
        np.testing.assert_allclose(effect, local.get(name).effect, atol=1e-5)
