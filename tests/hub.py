"""A server on 127.0.0.1 that speaks the hub's interface as far as the program uses it, and fails on purpose."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

PAGE = 100


@dataclass
class Repository:
    """files: path → content. Large ones are served as from LFS: by a redirect to the same server's /cdn."""

    files: dict[str, bytes]
    private: bool = False

    @property
    def commit(self) -> str:
        return hashlib.sha1("".join(f"{path}{oid_of(data)}" for path, data in self.files.items()).encode()).hexdigest()


_OIDS: dict[int, tuple[bytes, str]] = {}


def oid_of(content: bytes) -> str:
    if id(content) not in _OIDS:
        _OIDS[id(content)] = content, hashlib.sha256(content).hexdigest()
    return _OIDS[id(content)][1]


@dataclass(frozen=True)
class Asked:
    """One request and how many bytes its answer had."""

    method: str
    path: str
    range: str | None
    token: str | None
    sent: int
    status: int


@dataclass
class Answer:
    """What a failure answers instead. cut: close the connection in the middle of the body; hang: answer never, until
    the server stops.
    """

    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    cut: bool = False
    hang: bool = False


Failure = Callable[[str, str], Answer | None]
"""(method, path) → what to answer, None for what is right."""


@dataclass
class Hub:
    """repositories: by "models/owner/name" or "datasets/owner/name". etags: path → another ETag than the right one."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    fail: Failure = lambda method, path: None
    ranges: bool = True
    cdn: str = ""
    etags: dict[str, Iterator[str]] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)

    def add(self, repository: str, folder: Path | Mapping[str, bytes], **more: Any) -> None:
        if isinstance(folder, Path):
            files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        else:
            files = dict(folder)
        self.repositories[repository] = Repository(files, **more)

    def sent(self, start: int = 0) -> int:
        return sum(asked.sent for asked in self.asked[start:])


@contextmanager
def serving(hub: Hub | None = None) -> Iterator[Hub]:
    hub = hub or Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    hub: Hub

    def log_message(self, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if failure := self.hub.fail(self.command, self.path):
            if failure.hang:
                self.hub.stopped.wait()
                self.close_connection = True
                return
            self._send(failure.status, failure.body, failure.headers, cut=failure.cut)
            return
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts[0] == "api":
            self._api(parts[1:], parse_qs(url.query))
        else:
            self._file(parts)

    def _api(self, parts: list[str], query: dict[str, list[str]]) -> None:
        if parts in (["models"], ["datasets"]):
            self._list(parts[0], query)
            return
        key = "/".join(parts[:3])
        repository = self.hub.repositories.get(key)
        if repository is None or (repository.private and not self.headers.get("Authorization")):
            self._error(404, "RepoNotFound")
        elif parts[3:4] == ["revision"]:
            if parts[4] not in ("main", repository.commit):
                self._error(404, "RevisionNotFound")
                return
            self._json(self._info(key, repository))
        elif parts[3:4] == ["tree"]:
            below = "/".join(parts[5:])
            files = [
                {"type": "file", "path": path, "size": len(data), "oid": oid_of(data)[:40]}
                | ({"lfs": {"oid": oid_of(data), "size": len(data), "pointerSize": 130}} if is_lfs(path) else {})
                for path, data in repository.files.items()
                if not below or path.startswith(below + "/")
            ]
            if below and not files:
                self._error(404, "EntryNotFound")
                return
            self._paged(files, query)
        else:
            self._json(self._info(key, repository))

    def _list(self, kind: str, query: dict[str, list[str]]) -> None:
        author = query.get("author", [""])[0]
        found = [
            self._info(key, repository)
            for key, repository in self.hub.repositories.items()
            if key.startswith(f"{kind}/{author}/") and not repository.private
        ]
        self._paged(found, query)

    def _info(self, key: str, repository: Repository) -> dict[str, Any]:
        return {
            "id": key.partition("/")[2],
            "sha": repository.commit,
            "siblings": [{"rfilename": path} for path in repository.files],
            "private": repository.private,
        }

    def _paged(self, items: list[Any], query: dict[str, list[str]]) -> None:
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(items):
            base, _, rest = self.path.partition("?")
            kept = "&".join(part for part in rest.split("&") if part and not part.startswith("cursor="))
            headers["Link"] = f'<{self.hub.endpoint}{base}?{kept}&cursor={start + PAGE}>; rel="next"'
        self._json(items[start : start + PAGE], headers)

    def _file(self, parts: list[str]) -> None:
        if parts[0] == "cdn":
            key, path = "/".join(parts[1:4]), "/".join(parts[4:])
            self._content(key, path)
            return
        kind = parts.pop(0) if parts[0] == "datasets" else "models"
        key, path = f"{kind}/{parts[0]}/{parts[1]}", "/".join(parts[4:])
        repository = self.hub.repositories.get(key)
        if repository is None or (repository.private and not self.headers.get("Authorization")):
            self._error(404, "RepoNotFound")
        elif path not in repository.files:
            self._error(404, "EntryNotFound")
        elif is_lfs(path):
            oid = next(self.hub.etags[path]) if path in self.hub.etags else oid_of(repository.files[path])
            headers = {
                "Location": f"{self.hub.cdn or self.hub.endpoint}/cdn/{key}/{quote(path)}",
                "X-Repo-Commit": repository.commit,
                "X-Linked-Etag": f'"{oid}"',
                "X-Linked-Size": str(len(repository.files[path])),
                "ETag": f'"{oid}"',
            }
            self._send(302, b"", headers)
        else:
            self._content(key, path)

    def _content(self, key: str, path: str) -> None:
        repository = self.hub.repositories[key]
        data = repository.files[path]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{oid_of(data)}"', "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked and self.hub.ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
            if start >= len(data):
                self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            self._send(206, data[start:stop], headers)
        else:
            self._send(200, data, headers)

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _error(self, status: int, code: str) -> None:
        self._send(status, json.dumps({"error": code}).encode(), {"X-Error-Code": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        sent = 0 if self.command == "HEAD" else len(body)
        self.hub.asked.append(
            Asked(self.command, self.path, self.headers.get("Range"), self.headers.get("Authorization"), sent, status)
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if cut else body)
            self.wfile.flush()
        except OSError:  # the other side had enough
            self.close_connection = True
        if cut:
            self.close_connection = True


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".zip", ".parquet", ".pt"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The hub library talks to a server of this test, with a cache of its own."""
    with serving() as hub:
        use(hub, monkeypatch, tmp_path / "hub cache")
        yield hub
    close_session()


def use(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache.parent / "no token"))
    close_session()
