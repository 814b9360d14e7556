"""NDIF's API, restricted: to the models that are served, with a limit on a request's size, and with
results on the same port."""

import asyncio
import os
import secrets

from fastapi import FastAPI, Form, Header, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from ndif.common.providers.objectstore import ObjectStoreProvider
from ndif.common.schema import BackendRequestModel, BackendResponseModel, Status
from ndif.services.api.app import app as ndif
from ndif.services.api.app import get_response
from ndif.services.api.auth import validate_request

from . import served

KEY = os.environ["MECHFORGET_API_KEY"]  # empty: everyone who reaches the port is let in
LIMIT = int(os.environ["MECHFORGET_MAX_REQUEST"])  # bytes


async def _admitted(
    data: str = Form(...), api_key: str | None = Header(default=None, alias="ndif-api-key")
) -> BackendRequestModel:
    if KEY and not secrets.compare_digest((api_key or "").encode(), KEY.encode()):
        detail = "this server wants its key: set NDIF_API_KEY to the server's, and come through a "
        raise HTTPException(401, detail + "tunnel or https: a client sends it nowhere else")
    request = await validate_request(data, api_key)
    if refused := served.refusal(request.model_key):
        raise HTTPException(404, refused)
    adapter = request.env.get("peft")
    if adapter and (refused := served.adapter_refusal(request.model_key, adapter)):
        raise HTTPException(404, refused)
    # NDIF believes a client that calls itself trusted, as long as it has no database of keys.
    request.trusted = os.environ["MECHFORGET_TRUST"] == "trusted"
    request.priority = False
    return request


ndif.dependency_overrides[validate_request] = _admitted


class _Clients:
    """Refuses browsers: NDIF answers pages of any site, and a request is code. Only they send an
    Origin; but websocket-client does too, the server's own address, to a socket that takes no code.
    """

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        headers = dict(scope.get("headers", ()))
        origin = headers.get(b"origin")
        own = origin and origin.partition(b"://")[2] == headers.get(b"host")
        if origin is None or (own and scope["type"] == "websocket"):
            return await self.app(scope, receive, send)
        detail = "a browser's request, want nnsight's: pages aren't let in"
        await JSONResponse({"detail": detail}, 403)(scope, receive, send)


class _Limit:
    """Refuses a body that is too large, after reading and dropping all of it: else the client would
    not hear why."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        size = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if scope["type"] != "http" or int(size) <= LIMIT:
            return await self.app(scope, receive, send)
        while (await receive()).get("more_body"):
            pass
        came, want = int(size) / 1e6, LIMIT / 1e6
        detail = f"a request of {came:.0f} MB, want at most {want:.0f}: send less, or start the "
        response = JSONResponse({"detail": detail + "server with --max-request-mb"}, 413)
        await response(scope, receive, send)


app = FastAPI(title="NDIF, served by mechforget")
app.add_middleware(_Limit)
app.add_middleware(_Clients)


@app.get("/response/{id}")
async def response(id: str, request: Request) -> Response:
    """The latest status of a non-blocking job, for as long as this server runs."""
    found = BackendResponseModel.model_validate_json((await get_response(id)).body)
    if found.status == Status.COMPLETED:  # by the name the client knows us by: a tunnel's, say
        found.data = f"{request.base_url}result/{id}"
    return Response(found.model_dump_json(), media_type="application/json")


@app.get("/result/{id}")
async def result(id: str) -> Response:
    """What a job saved, in the form that nnsight's client reads."""
    found = await asyncio.to_thread(ObjectStoreProvider.get, f"{id}.pt")
    if found is None:
        raise HTTPException(404, f"no result of a job {id}: results last until the server stops")
    return Response(found, media_type="application/octet-stream")


app.mount("/", ndif)
