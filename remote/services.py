"""The services of a server, in the order in which they start, with command and environment."""

import contextlib
import json
import os
import secrets
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from remote import CHECKOUT, ENVIRONMENT

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Settings:
    keys: tuple[str, ...]  # of the models served, as nnsight writes them
    folder: Path
    adapters: dict[str, str] = field(default_factory=dict)  # folder -> its base's key
    host: str = LOOPBACK
    port: int = 5001
    device: str = "cuda"
    dtype: str = "bfloat16"
    threads: int = 1
    trust: str = "trusted"
    hub: bool = False
    max_request_mb: int = 256

    @property
    def url(self) -> str:
        host = LOOPBACK if self.host in ("0.0.0.0", "::") else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@dataclass(frozen=True)
class Ports:
    """Free ports, so that two servers, or a server and a user's own ray, can run side by side."""

    redis: int
    store: int
    gcs: int
    ray_client: int
    node_manager: int
    object_manager: int
    dashboard: int
    agent_http: int
    agent_grpc: int
    runtime_env: int
    metrics: int
    autoscaler_metrics: int
    dashboard_metrics: int


@dataclass(frozen=True)
class Service:
    name: str
    command: list[str]
    env: dict[str, str]
    port: int | None = None  # it is up when this answers
    ends: bool = False  # it hands something over to another and ends


def free_ports() -> Ports:
    with contextlib.ExitStack() as held:  # all at once, so that none is given twice
        found = []
        for _ in Ports.__dataclass_fields__:
            held.enter_context(sock := socket.socket())
            sock.bind((LOOPBACK, 0))
            found.append(sock.getsockname()[1])
    return Ports(*found)


def temporary() -> Path:
    """A folder for ray's sockets, whose paths may have 107 characters at most."""
    return Path(tempfile.mkdtemp(prefix="mechforget-ray-", dir="/tmp"))


def services(settings: Settings, ports: Ports, ray_folder: Path) -> list[Service]:
    """The services to start. Redis's config is written to a file, so that its password doesn't
    stand in the list of processes."""
    python = str(ENVIRONMENT / "bin" / "python")
    password, token = secrets.token_hex(16), secrets.token_hex(32)
    redis = settings.folder / "redis.conf"
    redis.touch(mode=0o600)
    redis.write_text(
        f'bind {LOOPBACK}\nport {ports.redis}\nrequirepass {password}\nsave ""\n'
        f"appendonly no\ndir {json.dumps(str(settings.folder))}\n"
    )
    env = _environment(settings, ports, password, token)
    moto = [python, "-m", "moto.server"]
    controller = [python, "-m", "ndif.services.ray.deployments.controller.controller"]
    address = {"RAY_ADDRESS": f"{LOOPBACK}:{ports.gcs}"}
    # NDIF starts its dispatcher under gunicorn, where nobody would see it die.
    dispatcher = [python, "-m", "ndif.services.api.queue.dispatcher"]
    listen = ["--host", settings.host, "--port", str(settings.port), "--log-level", "warning"]
    api = [python, "-m", "uvicorn", "mechforget_ndif.api:app", *listen]
    return [
        Service("redis", ["redis-server", str(redis)], env, ports.redis),
        Service("store", [*moto, "-H", LOOPBACK, "-p", str(ports.store)], env, ports.store),
        Service("ray", _ray(python, settings, ports, ray_folder), env, ports.ray_client),
        Service("controller", controller, env | address, ends=True),
        Service("dispatcher", dispatcher, env),
        Service("api", api, env, settings.port),
    ]


def _ray(python: str, settings: Settings, ports: Ports, folder: Path) -> list[str]:
    command = [
        *(python, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        f"--node-ip-address={LOOPBACK}",
        f"--port={ports.gcs}",
        f"--ray-client-server-port={ports.ray_client}",
        f"--node-manager-port={ports.node_manager}",
        f"--object-manager-port={ports.object_manager}",
        f"--dashboard-host={LOOPBACK}",
        f"--dashboard-port={ports.dashboard}",
        f"--dashboard-agent-listen-port={ports.agent_http}",
        f"--dashboard-agent-grpc-port={ports.agent_grpc}",
        f"--runtime-env-agent-port={ports.runtime_env}",
        f"--metrics-export-port={ports.metrics}",
        f"--temp-dir={folder}",
        # One for the controller and for each model, however few cores there are: ray only counts.
        f"--num-cpus={max(os.cpu_count() or 1, len(settings.keys) + 2)}",
        "--object-store-memory=200000000",  # requests pass through it one at a time
        "--disable-usage-stats",
    ]
    if settings.device == "cpu":  # a GPU that isn't there, for NDIF places models on GPUs only
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        resources = {"head": 10, "cuda_memory_bytes": memory, "cpu_memory_bytes": memory}
        return [*command, "--num-gpus=1", f"--resources={json.dumps(resources)}"]
    script = 'r=$("$0" -m ndif.services.ray.resources --head) && exec "$0" "$@" --resources="$r"'
    return ["bash", "-c", script, *command]


def _environment(settings: Settings, ports: Ports, password: str, token: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("NDIF_", "RAY_", "PYTHON", "MECHFORGET_", "VIRTUAL_ENV"))
    }
    return kept | {
        "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": str(CHECKOUT / "remote" / "server"),
        "PYTHONUNBUFFERED": "1",
        "MECHFORGET_LOOPBACK": "1",
        "MECHFORGET_API_KEY": os.environ.get("NDIF_API_KEY", ""),
        "MECHFORGET_ADAPTERS": json.dumps(settings.adapters),
        "MECHFORGET_DEVICE": settings.device,
        "MECHFORGET_TRUST": settings.trust,
        "MECHFORGET_THREADS": str(settings.threads),
        "MECHFORGET_MAX_REQUEST": str(settings.max_request_mb * 1_000_000),
        "OMP_NUM_THREADS": str(settings.threads),  # else ray sets it to 1
        "HF_HUB_OFFLINE": "0" if settings.hub else "1",
        "TOKENIZERS_PARALLELISM": "false",
        "GRPC_ENABLE_FORK_SUPPORT": "0",  # else ray's client servers die at birth, now and then
        "RAY_AUTH_MODE": "token",  # else any user of this machine may run code as you
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_AUTO_CONNECT": "0",  # else NDIF, when it has lost ray, starts one of its own
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # else it takes half a minute to stop
        "AUTOSCALER_METRIC_PORT": str(ports.autoscaler_metrics),
        "DASHBOARD_METRIC_PORT": str(ports.dashboard_metrics),
        "NDIF_REDIS_URL": f"redis://:{password}@{LOOPBACK}:{ports.redis}",
        "NDIF_OBJECT_STORE_URL": f"http://{LOOPBACK}:{ports.store}",
        "NDIF_API_URL": settings.url,
        "NDIF_API_PORT": str(settings.port),
        "NDIF_RAY_ADDRESS": f"ray://{LOOPBACK}:{ports.ray_client}",
        "NDIF_RAY_HEAD_PORT": str(ports.gcs),
        "NDIF_DEPLOYMENTS": "|".join(settings.keys),
        "NDIF_DEFAULT_MODEL_ACTOR_CLASS": "mechforget_ndif.actor.ModelActor",
        "NDIF_CONTROLLER_IMPORT_PATH": "mechforget_ndif.controller.ControllerActor",
        "NDIF_DEFAULT_DTYPE": settings.dtype,
        "NDIF_DEFAULT_PADDING_BIAS": "0" if settings.device == "cpu" else str(500 * 2**20),
        "NDIF_AUTOSCALING_MAX_REPLICAS": "1",  # else a long queue loads the model a second time
        "NDIF_MIN_NNSIGHT_VERSION": "0.8.0",  # an older client's requests are of another form
        "NDIF_STATUS_TTL_S": "1",
        "NDIF_STATUS_TIMEOUT_S": "15",
        "NDIF_SANDBOX_POOL_SIZE": "2",  # of half a gigabyte each
    }
