"""Whether one service, the server as a whole, or a model on it is up."""

import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from remote import ServerError
from remote.processes import Process

LAST = 8  # lines of a log that an error quotes


@dataclass(frozen=True)
class Model:
    name: str
    state: str  # RUNNING, DEPLOYING, FAILED or UNHEALTHY
    error: str | None = None
    adapters: tuple[str, ...] = ()  # it wears one of them where a request asks for it


def listens(host: str, port: int) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def ask(url: str, path: str, timeout: float = 20.0) -> dict | str | None:
    """The API's answer, or None if there is none yet. No proxy is used: it runs on this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url + path, timeout=timeout) as answer:
            return json.loads(answer.read())
    except (OSError, ValueError, http.client.HTTPException):
        return None


def models(url: str) -> list[Model] | None:
    """Every model's state, asked through API, dispatcher, ray and controller; None if one of these
    doesn't answer."""
    status = ask(url, "/status")
    if not isinstance(status, dict) or "served" not in status:
        return None
    return [
        Model(m["name"], m["state"], m["error"], tuple(m["adapters"])) for m in status["served"]
    ]


def wait(ready, process: Process, log: Path, seconds: float) -> None:
    """Wait until `ready()`. Raises: ServerError: the process ended first, or time is up."""
    end = time.monotonic() + seconds
    while not ready():
        if not process.alive:
            if ready():
                return
            raise ServerError(f"{process.name} ended while starting:{tail(log)}")
        if time.monotonic() > end:
            raise ServerError(f"{process.name} isn't up after {seconds:.0f} s:{tail(log)}")
        time.sleep(0.1)


def tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return "".join(f"\n  | {line}" for line in lines[-LAST:] if line.strip()) + f"\n  log: {log}"
