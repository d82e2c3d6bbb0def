"""A local stand-in for the Hugging Face Hub: the part of its HTTP API that downloads need."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_let_me_in"


class Hub:
    """A server of folders as repositories, {"user/name": folder}, inside a ``with`` block.

    Gated repositories require TOKEN.
    """

    def __init__(self, repositories: dict[str, Path], gated: frozenset[str] = frozenset()) -> None:
        self.repositories = repositories
        self.gated = gated
        self.requests: list[str] = []  # "GET /user/name/resolve/..."
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer()

            def do_GET(self) -> None:
                self.answer()

            def answer(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                hub.answer(self, urlsplit(self.path).path.strip("/").split("/"))

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self) -> Hub:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def downloads(self) -> set[str]:
        """Return the names of the downloaded files."""
        gets = [r for r in self.requests if r.startswith("GET ") and "/resolve/" in r]
        return {r.rsplit("/", 1)[1] for r in gets}

    def answer(self, to: BaseHTTPRequestHandler, path: list[str]) -> None:
        """Answer a request for a path, which is split at slashes."""
        is_api = path[:2] == ["api", "models"]
        repository = "/".join(path[2:4] if is_api else path[:2])
        rest = path[4:] if is_api else path[2:]
        if repository not in self.repositories:
            return self.send(to, 404, {"X-Error-Code": "RepoNotFound"})
        if repository in self.gated and to.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(to, 403, {"X-Error-Code": "GatedRepo"})
        folder = self.repositories[repository]
        if len(rest) < 2 or rest[1] not in ("main", "v1", COMMIT):
            return self.send(to, 404, {"X-Error-Code": "RevisionNotFound"})
        files = sorted(p for p in folder.iterdir() if p.is_file())
        if rest[0] == "revision":
            siblings = [{"rfilename": p.name} for p in files]
            body = {"id": repository, "sha": COMMIT, "siblings": siblings}
            return self.send(to, 200, {"Content-Type": "application/json"}, body)
        if rest[0] == "tree":
            entries = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": etag(p)}
                for p in files
            ]
            return self.send(to, 200, {"Content-Type": "application/json"}, entries)
        file = folder / rest[2]
        if rest[0] != "resolve" or not file.is_file():
            return self.send(to, 404, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{etag(file)}"', "X-Repo-Commit": COMMIT}
        return self.send(to, 200, headers, file.read_bytes())

    @staticmethod
    def send(
        to: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: object = b""
    ) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        to.send_response(status)
        for name, value in headers.items():
            to.send_header(name, value)
        to.send_header("Content-Length", str(len(data)))
        to.end_headers()
        if to.command != "HEAD":
            to.wfile.write(data)


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
