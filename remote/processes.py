"""Processes that we start, remember and end. Each is the leader of a session of its own.

Ray alone starts twenty; all stay in its session, which is what is ended. A process is ours if its
number and its start time are the recorded ones: a number that the system gave to another since
is left alone. Nothing is ever looked for by name.
"""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from remote import ServerError

GRACE = 8.0  # seconds to end in peace
_codes: dict[int, int] = {}  # of our children that have ended


@dataclass(frozen=True)
class Process:
    """What is recorded of a started service: no more than it takes to find it again."""

    name: str
    pid: int
    started: int  # clock ticks since boot
    boot: str  # after a reboot the same numbers mean other processes

    @property
    def alive(self) -> bool:
        return self.boot == boot() and _started(self.pid) == self.started

    def members(self) -> list[int]:
        """All processes of the session, the leader first."""
        if self.boot != boot():
            return []
        if not self.alive and _started(self.pid) is not None:
            return []  # someone else's by now: while members live, a number isn't given away
        found = [pid for pid, stat in _all() if stat.session == self.pid]
        return sorted(found, key=lambda pid: (pid != self.pid, pid))


@dataclass(frozen=True)
class _Stat:
    state: str
    session: int
    started: int


def start(name: str, command: list[str], *, env: dict[str, str], log: Path, cwd: Path) -> Process:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        child = subprocess.Popen(
            command,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    child.returncode = 0  # it outlives us on purpose: no warning when this object goes
    started = _started(child.pid)
    return Process(name, child.pid, -1 if started is None else started, boot())


def stop(processes: list[Process]) -> list[int]:
    """End services, the last started first, each with its whole session. Returns those that didn't
    end."""
    for process in reversed(processes):
        for how, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 3.0)):
            for pid in process.members():
                with contextlib.suppress(ProcessLookupError):  # gone meanwhile
                    os.kill(pid, how)
            _wait(process, patience)
    return [pid for process in processes for pid in process.members()]


def exit_code(process: Process) -> int | None:
    """The exit code of a process that we started, once it has ended."""
    _reap(process.pid, wait=True)  # its main thread has; others may take a moment
    return _codes.get(process.pid)


def boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        raise ServerError("no /proc here: a server runs on Linux only") from None


def _wait(process: Process, seconds: float) -> None:
    end = time.monotonic() + seconds
    while process.members() and time.monotonic() < end:
        time.sleep(0.05)


def _stat(pid: int) -> _Stat | None:
    try:
        # pid (name, which may hold anything) state ppid pgrp session … 22nd: start time
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return _Stat(fields[0], int(fields[3]), int(fields[19]))


def _started(pid: int) -> int | None:
    """The start time of a process that is running; a zombie isn't."""
    _reap(pid)
    stat = _stat(pid)
    return None if stat is None or stat.state == "Z" else stat.started


def _reap(pid: int, *, wait: bool = False) -> None:
    try:
        ended, code = os.waitpid(pid, 0 if wait else os.WNOHANG)
    except ChildProcessError:
        return  # another's child, or reaped
    if ended:
        _codes[pid] = os.waitstatus_to_exitcode(code)


def _all() -> list[tuple[int, _Stat]]:
    found = [(int(p.name), _stat(int(p.name))) for p in Path("/proc").iterdir() if p.name.isdigit()]
    return [(pid, stat) for pid, stat in found if stat is not None and stat.state != "Z"]
