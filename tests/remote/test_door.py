"""Who is let in, asked of the door itself, in the server's own environment."""

import json
import subprocess

import pytest

from remote import ENVIRONMENT
from remote.services import Settings, free_ports, services
from tests.remote.server import missing

ASK = """
import asyncio, json
from fastapi import HTTPException
from mechforget_ndif import api

def ask(key, **request):
    data = json.dumps({"model_key": "served", "trusted": True, "priority": True} | request)
    try:
        found = asyncio.run(api._admitted(data, key))
        return [found.trusted, found.priority]
    except HTTPException as error:
        return [error.status_code, error.detail]

print(json.dumps([ask("right"), ask("wrong"), ask(None), ask("right", model_key="other")]))
"""


def test_a_client_cannot_make_itself_trusted_nor_do_without_the_key(tmp_path, monkeypatch):
    if why := missing():
        pytest.skip(why)
    monkeypatch.setenv("NDIF_API_KEY", "right")
    settings = Settings(keys=("served",), folder=tmp_path, trust="sandbox")
    env = services(settings, free_ports(), tmp_path)[-1].env
    asked = [ENVIRONMENT / "bin" / "python", "-c", ASK]
    said = subprocess.run(asked, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    right, wrong, none, other = json.loads(said.stdout)
    assert right == [False, False]  # not trusted, and no place before others
    assert wrong == none and none[0] == 401
    assert none[1].startswith("this server wants its key: set NDIF_API_KEY to the server's, and ")
    assert other[0] == 404 and "isn't served here" in other[1]
    assert (tmp_path / "redis.conf").stat().st_mode & 0o077 == 0
