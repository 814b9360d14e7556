"""Real servers of tiny checkpoints, each started once for all rooms that want one: `server` has two
checkpoints and two adapters of the first, `mixtures` two of each family in MIXTURES.

from tests.remote.server import server

def test_something(server):
    server.url, server.pre, server.post, server.adapter, server.other
"""

import atexit
import contextlib
import importlib.util
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from remote import CHECKOUT, ENVIRONMENT, record
from tests.tiny import save_adapter, save_tiny

MIXTURES = ("qwen3_moe", "mixtral", "llama4_text")
LIMIT = 32  # MB of a request: one that is too large needn't take long


@dataclass(frozen=True)
class Server:
    url: str
    pre: Path
    post: Path
    adapter: Path
    other: Path
    folder: Path

    @property
    def record(self) -> record.Record:
        found = record.load(self.folder)
        assert found is not None, f"no server runs from {self.folder}"
        return found


def serve(*words: object, **options) -> subprocess.CompletedProcess:
    """The command in a process of its own, as a user gives it."""
    command = [sys.executable, "-m", "remote.serve", *map(str, words)]
    return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, **options)


def missing() -> str | None:
    """Why no server can be started here."""
    if not (ENVIRONMENT / ".installed").exists():
        return "no .venv-remote: `make remote-setup` makes it"
    if shutil.which("redis-server") is None:
        return "no redis-server: `make remote-setup` as root installs it"
    if importlib.util.find_spec("nnsight") is None:
        return "no nnsight on the client's side"
    return None


@cache
def running() -> Server:
    home = _home()
    pre = save_tiny(home / "pre", seed=0)
    folders = (
        pre,
        save_tiny(home / "post", seed=1),
        save_adapter(home / "adapter", pre, seed=1),
        save_adapter(home / "other", pre, seed=2),
    )
    pre, post, adapter, other = folders
    url = _started(home, pre, adapter, post, other)
    return Server(url, *folders, home / "server")


@cache
def running_mixtures() -> tuple[str, dict[str, tuple[Path, Path]]]:
    home = _home()
    pairs = {
        family: (
            save_tiny(home / f"{family}-pre", family, seed=0),
            save_tiny(home / f"{family}-post", family, seed=1),
        )
        for family in MIXTURES
    }
    return _started(home, *(folder for pair in pairs.values() for folder in pair)), pairs


def _home() -> Path:
    home = Path(tempfile.mkdtemp(prefix="mechforget-tests-"))
    atexit.register(shutil.rmtree, home, True)
    return home


def _started(home: Path, *folders: Path) -> str:
    """The address of a server of these folders."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    atexit.register(serve, "--stop", "--dir", home / "server")
    said = serve(
        *folders,
        *("--device", "cpu", "--threads", 1, "--port", port, "--detach"),
        *("--max-request-mb", LIMIT, "--dir", home / "server"),
    )
    assert said.returncode == 0, said.stdout + said.stderr
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def server() -> Server:
    """Not of the session's scope: what a test has ended is started again for the next."""
    if why := missing():
        pytest.skip(why)
    return running()


@pytest.fixture
def mixtures() -> tuple[str, dict[str, tuple[Path, Path]]]:
    """The address, and the two folders of each family."""
    if why := missing():
        pytest.skip(why)
    return running_mixtures()
