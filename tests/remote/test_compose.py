"""The compose file can't be run here: it tells each service what `remote.serve` tells it."""

from pathlib import Path

import pytest

from remote import CHECKOUT
from remote.services import Settings, free_ports, services

yaml = pytest.importorskip("yaml")


def test_compose_says_what_serve_says(tmp_path):
    settings = Settings(keys=("a", "b"), folder=tmp_path, threads=8)
    ours = {s.name: s for s in services(settings, free_ports(), Path("/tmp/x"))}
    told = yaml.safe_load((CHECKOUT / "remote" / "compose.yaml").read_text())["services"]
    assert told.keys() == ours.keys() - {"ray"} | {"head", "worker"}

    mine = ("MECHFORGET_", "NDIF_", "RAY_", "OMP_", "HF_HUB_OFF", "TOKENIZERS_", "GRPC_ENABLE")
    env = {k: v for k, v in ours["api"].env.items() if k.startswith(mine)}
    del env["MECHFORGET_LOOPBACK"]  # several machines can't be reached over it
    there = told["api"]["environment"]
    ports = {"AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT"}  # one server a machine
    assert there.keys() == env.keys() - ports
    same = {k for k, v in there.items() if "${" not in v and "://" not in v}
    same -= {"NDIF_RAY_HEAD_PORT"}
    assert {k: there[k] for k in same} == {k: env[k] for k in same}


def test_a_worker_is_started_alone():
    """Catches a second head: a profile on the command line starts all that have none as well."""
    text = (CHECKOUT / "remote" / "compose.yaml").read_text()
    profiled = {n for n, s in yaml.safe_load(text)["services"].items() if "profiles" in s}
    assert profiled == {"worker"}
    assert "docker compose up -d worker" in text and "--profile" not in text


def test_compose_runs_the_same_programs(tmp_path):
    settings = Settings(keys=("a",), folder=tmp_path)
    ours = {s.name: s for s in services(settings, free_ports(), Path("/tmp/x"))}
    told = yaml.safe_load((CHECKOUT / "remote" / "compose.yaml").read_text())["services"]
    for name in ("store", "controller", "dispatcher", "api"):
        module = ours[name].command[ours[name].command.index("-m") + 1]
        assert f"python -m {module}" in told[name]["command"]
