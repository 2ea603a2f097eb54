"""A hub on this machine: serves folders over the part of the Hugging Face HTTP interface that downloads use."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    repos: Mapping[str, Path]
    """`models/owner/name` or `datasets/owner/name` -> its files."""
    asked: list[str]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.asked.append(path)
        if path.startswith("api/"):
            self._api(path.removeprefix("api/").split("/"))
        else:
            self._file((path if path.startswith("datasets/") else f"models/{path}").split("/"))

    def do_HEAD(self) -> None:
        self.do_GET()

    def _api(self, path: list[str]) -> None:
        repo, call = "/".join(path[:3]), path[3:]
        if repo not in self.repos:
            self._missing("RepoNotFound")
        elif call[:1] == ["revision"] and call[1] not in ("main", COMMIT):
            self._missing("RevisionNotFound")
        elif call[:1] == ["tree"]:
            under = "/".join(call[2:])
            self._json([file for file in self._tree(repo) if str(file["path"]).startswith(under)])
        else:
            files = [{"rfilename": file["path"]} for file in self._tree(repo)]
            self._json({"id": "/".join(path[1:3]), "sha": COMMIT, "private": False, "siblings": files})

    def _tree(self, repo: str) -> list[dict[str, object]]:
        folder = self.repos[repo]
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        return [
            {
                "type": "file",
                "path": file.relative_to(folder).as_posix(),
                "size": file.stat().st_size,
                "oid": _oid(file),
            }
            for file in files
        ]

    def _file(self, path: list[str]) -> None:
        file = self.repos.get("/".join(path[:3]), Path("/nowhere")).joinpath(*path[5:])
        if not file.is_file():
            return self._missing("EntryNotFound")
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_oid(file)}"')
        return self._body(file.read_bytes())

    def _json(self, value: object) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._body(json.dumps(value).encode())

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self._body(b"{}")

    def _body(self, content: bytes) -> None:
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *told: object) -> None:
        """Silent."""


def _oid(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def serve(repos: Mapping[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """`with serve({"models/owner/name": folder}) as (endpoint, asked):` an HF_ENDPOINT, and the paths asked of it."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"repos": repos, "asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
