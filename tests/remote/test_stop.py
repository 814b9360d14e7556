"""The end of a server: one that lost a process says so, and nothing of it stays."""

import os
import signal

from tests.remote.server import running, serve
from tests.remote.test_processes import until


def test_a_lost_process_is_seen_and_stop_leaves_nothing(server):
    record = server.record
    ours = [p for process in record.processes for p in process.members()]
    assert len(ours) > 15  # ray alone starts as many
    (api,) = [p for p in record.processes if p.name == "api"]
    os.kill(api.pid, signal.SIGKILL)
    until(lambda: not api.alive)

    said = serve("--status", "--dir", server.folder)
    assert said.returncode == 1
    assert [line.split()[0] for line in said.stdout.splitlines() if "DOWN" in line] == [
        "api",
        "requests",
    ]
    running.cache_clear()  # who wants one after this gets another
    said = serve("--stop", "--dir", server.folder)
    assert said.returncode == 0, said.stderr
    assert not any(process.members() for process in record.processes)
    assert not record.ray_folder.exists() and not record.file.exists()
    assert (server.folder / "logs" / "ray").is_dir()

    for word in ("--stop", "--status"):
        said = serve(word, "--dir", server.folder)
        assert said.returncode == 1 and "no server runs from" in said.stderr
