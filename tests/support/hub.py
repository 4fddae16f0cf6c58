"""A hub on loopback: the few answers of its interface that fetching asks for, about files of a folder.

The folder holds models/<owner>/<name>/ and datasets/<owner>/<name>/; every repository has one commit.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
GATED = "owner/gated"


class Hub(BaseHTTPRequestHandler):
    root: Path

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_POST(self) -> None:
        """api/{kind}/{owner}/{name}/paths-info/{revision}"""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        _, kind, owner, name, *_ = urlsplit(self.path).path.strip("/").split("/")
        repository = self.root / kind / owner / name
        self.say([described(repository, path) for path in asked["paths"] if (repository / path).exists()])

    def answer(self, body: bool) -> None:
        words = unquote(urlsplit(self.path).path).strip("/").split("/")
        if words[0] == "api":
            kind, owner, name, what, *rest = [*words[1:], "", "", "", ""]
            repository = self.root / kind / owner / name
            if owner and not repository.is_dir():
                self.refuse(404, "RepoNotFound")
            elif what == "tree":
                whole = "recursive=true" in self.path.lower()
                below = repository.joinpath(*rest[1:])
                found = sorted(below.rglob("*") if whole else below.glob("*"))
                self.say([described(repository, path.relative_to(repository).as_posix()) for path in found])
            else:
                self.say({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": []})
            return
        kind = "datasets" if words[0] == "datasets" else "models"
        owner, name, _, _, *path = words[1:] if kind == "datasets" else words
        if f"{owner}/{name}" == GATED:
            self.refuse(403, "GatedRepo")
            return
        file = self.root / kind / owner / name / "/".join(path)
        if not file.is_file():
            self.refuse(404, "EntryNotFound")
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(file.stat().st_size))
        self.end_headers()
        if body:
            self.wfile.write(file.read_bytes())

    def say(self, value: object) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def refuse(self, code: int, why: str) -> None:
        self.send_response(code)
        self.send_header("X-Error-Code", why)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def described(repository: Path, path: str) -> dict[str, object]:
    if (repository / path).is_dir():
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
    content = (repository / path).read_bytes()
    large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
    return {"type": "file", "path": path, "oid": "0" * 40, "size": len(content), "lfs": large}


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """Its address, for HF_ENDPOINT."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"root": root}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
