"""Ending processes: all of ours, and nobody else's."""

import dataclasses
import subprocess
import sys
import time

import pytest

from remote import processes

# A leader with a child that won't hear of SIGTERM.
STUBBORN = """
import signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child])
print("up", flush=True)
time.sleep(60)
"""


def run(code: str, tmp_path) -> processes.Process:
    command = [sys.executable, "-c", code]
    return processes.start("x", command, env={}, log=tmp_path / "x.log", cwd=tmp_path)


def until(true, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_whole_session_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.5)
    process = run(STUBBORN, tmp_path)
    until(lambda: len(process.members()) == 2)
    assert process.alive and process.members()[0] == process.pid
    assert processes.stop([process]) == []
    assert not process.alive


def test_children_of_a_dead_leader_are_still_found(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.5)
    process = run(STUBBORN.replace("time.sleep(60)\n", "time.sleep(0.5)\n"), tmp_path)
    until(lambda: not process.alive)
    assert len(process.members()) == 1
    assert processes.stop([process]) == []


@pytest.mark.parametrize("change", [{"started": 1}, {"boot": "another"}])
def test_a_number_given_to_another_process_is_left_alone(change):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE,
                          start_new_session=True) as other:  # fmt: skip
        recorded = processes.Process(
            "x", other.pid, processes._started(other.pid), processes.boot()
        )
        assert recorded.alive  # else the next lines would show nothing
        recorded = dataclasses.replace(recorded, **change)
        assert not recorded.alive and recorded.members() == []
        assert processes.stop([recorded]) == []
        assert other.poll() is None
        other.kill()


def test_the_code_of_one_that_ended(tmp_path):
    process = run("import sys; print('said'); sys.exit(3)", tmp_path)
    until(lambda: not process.alive)
    assert processes.exit_code(process) == 3
    assert (tmp_path / "x.log").read_text() == "said\n"
