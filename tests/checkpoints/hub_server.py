"""A hub on localhost: the few routes of huggingface.co that its client asks, over folders.

`with serve({"org/name": {"main": folder}}) as hub` yields its address and the paths asked for.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse


@dataclass
class Hub:
    address: str
    asked: list[str] = field(default_factory=list)


def commit(folder: Path) -> str:
    return hashlib.sha1(str(folder).encode()).hexdigest()


@contextmanager
def serve(models: dict[str, dict[str, Path]]) -> Iterator[Hub]:
    """models: repository -> revision -> folder. Anything else is answered with 404."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append(self.path)
            parts = urlparse(self.path).path.strip("/").split("/")
            if parts[0] == "api":
                self._api("/".join(parts[2:4]), parts[4:])
            else:
                self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

        do_HEAD = do_GET

        def _api(self, repo: str, rest: list[str]) -> None:
            if (folder := self._folder(repo, rest[1] if rest else "main")) is None:
                return
            files = sorted(f for f in folder.rglob("*") if f.is_file())
            if rest[:1] == ["tree"]:
                tree = [
                    {
                        "type": "file",
                        "path": str(f.relative_to(folder)),
                        "size": f.stat().st_size,
                        "oid": hashlib.sha1(f.read_bytes()).hexdigest(),
                    }
                    for f in files
                ]
                self._answer(200, json.dumps(tree).encode())
            else:
                info = {"id": repo, "sha": commit(folder), "siblings": []}
                self._answer(200, json.dumps(info).encode(), {"X-HF-Warning": "x; be warned"})

        def _file(self, repo: str, revision: str, name: str) -> None:
            if (folder := self._folder(repo, revision)) is None:
                return
            body = (folder / name).read_bytes()
            etag = f'"{hashlib.sha1(body).hexdigest()}"'
            self._answer(200, body, {"ETag": etag, "X-Repo-Commit": commit(folder)})

        def _folder(self, repo: str, revision: str) -> Path | None:
            if repo not in models:
                self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
                return None
            revisions = models[repo] | {commit(f): f for f in models[repo].values()}
            if revision not in revisions:
                self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return None
            return revisions[revision]

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
