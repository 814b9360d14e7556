"""python -m remote.serve MODEL [MODEL …]: serve models of yours with NDIF on this machine.

If a MODEL is a LoRA adapter, it is put on its base on request; the base must be named too.

The server runs until Ctrl-C, or, with --detach, until `python -m remote.serve --stop`.
"""

import argparse
import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mechforget.errors import MechforgetError
from mechforget.progress import bar
from remote import ENVIRONMENT, ServerError, health, models, processes, record
from remote.processes import Process
from remote.record import Record
from remote.services import LOOPBACK, Service, Settings, free_ports, services, temporary

PATIENCE = 600.0  # seconds for a service to answer; ray takes ten, on a busy machine minutes
HOUR = 3600.0  # for a model to load: 400 GB from a slow disk


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"remote.serve: {message}; see python -m remote.serve --help\n")


def main(words: list[str] | None = None) -> None:
    options = _parser().parse_args(words)
    folder = options.dir.expanduser().resolve()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left behind
    code = 2  # a wrong option, until the start begins; then it is 1: the machine failed
    try:
        if options.stop or options.status:
            sys.exit(stop(folder) if options.stop else status(folder))
        settings = _settings(options, folder)
        _check(settings)
        code = 1
        running = start(settings)
        _next(running, settings)
        if not options.detach:
            _stay(running)
    except MechforgetError as error:
        sys.exit(_say(f"remote.serve: {error}", code))
    except KeyboardInterrupt:
        sys.exit(_say("remote.serve: interrupted; everything is stopped", 130))


def start(settings: Settings) -> Record:
    """Start all services and all models. If one fails, the others are stopped."""
    ports, ray_folder = free_ports(), temporary()
    settings.folder.mkdir(parents=True, exist_ok=True)
    names = [models.name(key) for key in settings.keys]
    running = Record(settings.folder, settings.url, names, ray_folder)
    shutil.rmtree(settings.folder / "logs", ignore_errors=True)
    todo = services(settings, ports, ray_folder)
    try:
        with bar("starting", len(todo) + len(names), "steps") as advance:
            began = time.monotonic()
            # All at once, for they wait for each other; one that hands over to ray after ray is up.
            started = [None if service.ends else _start(service, running) for service in todo]
            for service, process in zip(todo, started, strict=True):
                _await(service, process or _start(service, running), running, settings)
                _say(f"{service.name:<11}up  {time.monotonic() - began:5.1f} s")
                advance(1)
            _deployed(running, began, advance)
    except BaseException:
        running.stop()
        raise
    return running


def _start(service: Service, running: Record) -> Process:
    log, cwd = running.log(service.name), running.folder
    process = processes.start(service.name, service.command, env=service.env, log=log, cwd=cwd)
    running.processes.append(process)
    running.save()
    return process


def _await(service: Service, process: Process, running: Record, settings: Settings) -> None:
    log = running.log(service.name)
    if service.ends:
        health.wait(lambda: not process.alive, process, log, PATIENCE)
        if (code := processes.exit_code(process)) != 0:
            raise ServerError(f"{service.name} failed with code {code}:{health.tail(log)}")
        running.processes.remove(process)
        running.save()
    elif (port := service.port) is not None:
        host = settings.host if service.name == "api" else LOOPBACK
        health.wait(lambda: health.listens(host, port), process, log, PATIENCE)


def _deployed(running: Record, began: float, advance: Callable[[float], None]) -> None:
    """Wait until every model is loaded. Raises: ServerError: says which isn't, and why."""
    told, answered = set(), time.monotonic()
    while len(told) < len(running.models):
        _watch(running)
        found = health.models(running.url)
        now = time.monotonic()
        if found is None and now - answered > PATIENCE:
            log = running.log("api")
            raise ServerError(f"ray and the API don't find each other:{health.tail(log)}")
        answered = answered if found is None else now
        for model in found or []:
            if model.state in ("FAILED", "UNHEALTHY"):
                raise ServerError(f"{model.name} can't be served: {model.error or model.state}")
            if model.state == "RUNNING" and model.name not in told:
                told.add(model.name)
                _say(f"{'model':<11}up  {now - began:5.1f} s  {model.name}")
                advance(1)
        if now - began > HOUR:
            missing = ", ".join(set(running.models) - told)
            raise ServerError(f"after an hour {missing} isn't loaded; logs: {running.folder}/logs")
        time.sleep(0.3)


def _watch(running: Record) -> None:
    """Raises: ServerError: a service has ended, with the end of its log."""
    for process in running.processes:
        if not process.alive:
            raise ServerError(f"{process.name} has ended:{health.tail(running.log(process.name))}")


def _stay(running: Record) -> None:
    try:
        while True:
            _watch(running)
            time.sleep(1)
    finally:
        _say("stopping …")
        running.stop()


def status(folder: Path) -> int:
    """Print one line for each service and model. Returns: 0 if all of them are up, else 1."""
    running = record.load(folder)
    if running is None:
        return _say(f"no server runs from {folder}", 1)
    well = [_line(p.name, p.alive, f"process {p.pid}") for p in running.processes]
    found = health.models(running.url) if all(well) else None
    for model in found or []:
        up = model.state == "RUNNING"
        well.append(_line("model", up, f"{model.name} {model.error or ''}"))
        well += [_line("adapter", up, f"{path} of {model.name}") for path in model.adapters]
    if found is None:
        well.append(_line("requests", False, f"{running.url} doesn't answer; logs: {folder}/logs"))
    else:
        _line("requests", True, running.url)
    return 0 if all(well) else 1


def _line(name: str, well: bool, what: str) -> bool:
    _say(f"{name:<11}{'up' if well else 'DOWN':<6}{what}".rstrip())
    return well


def stop(folder: Path) -> int:
    running = record.load(folder)
    if running is None:
        return _say(f"no server runs from {folder}", 1)
    with bar("stopping", 1, "server") as advance:
        running.stop()
        advance(1)
    return _say(f"stopped the server at {running.url}; logs: {folder}/logs", 0)


def _settings(options: argparse.Namespace, folder: Path) -> Settings:
    if not options.models:
        raise ServerError("no model named; want folders or ids: python -m remote.serve PRE POST")
    loopback = options.host == "localhost" or _address(options.host).is_loopback
    if not loopback and options.trust is None:
        raise ServerError(
            f"--host {options.host} lets others in: say --trust sandbox, or --trust trusted if all"
            " who reach it may run code as you"
        )
    if options.max_request_mb > 500:
        raise ServerError(f"--max-request-mb {options.max_request_mb}: redis holds 500 at most")
    whole = [model for model in options.models if not models.is_adapter(model)]
    keys = [models.key(model, hub=options.hub) for model in whole]
    adapters = [models.base(m, keys) for m in options.models if m not in whole]
    names = [*map(models.name, keys), *(path for path, _ in adapters)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ServerError(f"named twice: {', '.join(twice)}; once is enough")
    return Settings(
        keys=tuple(keys),
        folder=folder,
        adapters=dict(adapters),
        host=LOOPBACK if options.host == "localhost" else options.host,
        port=options.port,
        device=options.device,
        dtype=options.dtype or ("float32" if options.device == "cpu" else "bfloat16"),
        threads=options.threads or os.cpu_count() or 1,
        trust=options.trust or "trusted",
        hub=options.hub,
        max_request_mb=options.max_request_mb,
    )


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        raise ServerError(f"--host {host}: want an address of this machine: 127.0.0.1") from None


def _check(settings: Settings) -> None:
    """Raises: ServerError: something that the server needs is missing, or in use already."""
    if not (ENVIRONMENT / ".installed").exists():
        raise ServerError(f"{ENVIRONMENT} isn't there or not whole: run `make remote-setup`")
    if shutil.which("redis-server") is None:
        raise ServerError("no redis-server found: `make remote-setup` as root, or install Debian's")
    old = record.load(settings.folder)
    if old is not None and old.running:
        where = "" if settings.folder.name == "server" else f" --dir {settings.folder}"
        raise ServerError(
            f"a server runs from {settings.folder} already, at {old.url}: stop it with"
            f" `python -m remote.serve --stop{where}`, or name another folder with --dir"
        )
    if health.listens(settings.host, settings.port):
        raise ServerError(f"port {settings.port} of {settings.host} is taken; want a free --port")
    if settings.device == "cuda":
        count = subprocess.run(
            [
                ENVIRONMENT / "bin" / "python",
                "-c",
                "import torch; print(torch.cuda.device_count())",
            ],
            capture_output=True,
            text=True,
        ).stdout.strip()
        if count in ("", "0"):
            raise ServerError(
                "no GPU that torch can use; want one, or --device cpu to try it on a small model"
            )


def _next(running: Record, settings: Settings) -> None:
    """Print what to do next, as commands to copy."""
    where = "" if settings.folder == Path("runs/server").resolve() else f" --dir {settings.folder}"
    names = [*running.models, *settings.adapters]
    pre, post = names[:2] if len(names) > 1 else ("PRE", "POST")
    _say(f"serving at {running.url} ({settings.device}, {settings.dtype}, {settings.trust})")
    _say("Now, in another terminal:")
    command = f"mechforget compare {pre} {post} --task TASK --backend remote"
    _say(f"  {command} --server {running.url}")
    _say(f"  python -m remote.serve --status{where}")
    _say(f"  python -m remote.serve --stop{where}")


def _say(text: str, code: int = 0) -> int:
    print(text, flush=True, file=sys.stderr if code else sys.stdout)
    return code


def _parser() -> argparse.ArgumentParser:
    trust = (
        "trusted: whoever reaches it runs code as you; sandbox: in processes of their own, without"
        " gradients (trusted; to be said for a --host that others reach)"
    )
    dtypes = ("float32", "bfloat16", "float16")
    p = _Parser(prog="python -m remote.serve", description=(__doc__ or "").partition("\n")[0])
    add = p.add_argument
    add("models", nargs="*", metavar="MODEL", help="folder, hub id or id@revision")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for trials")
    add("--dtype", choices=dtypes, help="of the weights (bfloat16; float32 on a CPU)")
    add("--threads", type=_number, help="of the CPU, for each model (all cores)")
    add("--host", default=LOOPBACK, help="address to listen on (127.0.0.1)")
    add("--port", type=_number, default=5001, help="of the API (5001)")
    add("--trust", choices=("trusted", "sandbox"), help=trust)
    add("--hub", action="store_true", help="models may be downloaded")
    add("--max-request-mb", type=_number, default=256, help="largest request (256)")
    add("--dir", type=Path, default=Path("runs/server"), help="its record and logs (runs/server)")
    add("--detach", action="store_true", help="return when all is up")
    add("--status", action="store_true", help="is it well? exit code 0 or 1")
    add("--stop", action="store_true", help="end it")
    return p


def _number(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1 or value > 65535:
        raise argparse.ArgumentTypeError(f"came {text!r}, want a whole number from 1 to 65535")
    return value


if __name__ == "__main__":
    main()
