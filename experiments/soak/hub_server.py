"""A local Hugging Face hub with one data set or model, and injectable faults."""

import contextlib
import functools
import http.server
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

SHA = "0123456789abcdef0123456789abcdef01234567"

# Called before a request is answered, with its kind (`info`, `tree` or `file`); returns true if it
# has handled the request.
Fault = Callable[["Hub", str], bool]


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers the requests that huggingface_hub makes when it downloads or streams."""

    folder: Path  # of the files that it serves
    identifier: str
    kind: str  # dataset or model
    fault: Fault

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        place = "" if self.kind == "model" else "datasets/"
        interface = f"/api/{self.kind}s/{self.identifier}"
        if re.fullmatch(f"{interface}(/revision/[^/]+)?", path):
            self._answer_unless_failing("info", self._answer_info)
        elif found := re.fullmatch(f"{interface}/tree/[^/]+/?(.*)", path):
            self._answer_unless_failing("tree", functools.partial(self._answer_tree, found[1]))
        elif found := re.fullmatch(f"/{place}{self.identifier}/resolve/[^/]+/(.*)", path):
            file = self.folder / found[1]
            self._answer_unless_failing("file", functools.partial(self._answer_file, file))
        else:
            self.answer(404, b"")

    do_HEAD = do_GET

    def _answer_unless_failing(self, what: str, answer: Callable[[], None]) -> None:
        if not self.fault(self, what):
            answer()

    def _answer_info(self) -> None:
        self.answer_json({"id": self.identifier, "sha": SHA, "siblings": []})

    def _answer_tree(self, below: str) -> None:
        recursive = "recursive=true" in self.path.lower()
        found = (self.folder / below).rglob("*") if recursive else (self.folder / below).iterdir()
        self.answer_json([self._entry(path) for path in sorted(found)])

    def _entry(self, path: Path) -> dict[str, Any]:
        kind, size = ("file", path.stat().st_size) if path.is_file() else ("directory", 0)
        name = str(path.relative_to(self.folder))
        return {"type": kind, "path": name, "size": size, "oid": SHA}

    def _answer_file(self, file: Path) -> None:
        if not file.is_file():
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        content, asked = file.read_bytes(), self.headers.get("Range")
        # The name serves as ETag; the cache keeps files with equal tags once.
        about = {"ETag": f'"{file.name}"', "X-Repo-Commit": SHA}
        if asked is None:
            self.answer(200, content, about)
            return
        first, last = asked.removeprefix("bytes=").split("-")
        part = content[int(first) : int(last) + 1 if last else None]
        place = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self.answer(206, part, {**about, "Content-Range": place})

    def answer_json(self, content: Any) -> None:
        self.answer(200, json.dumps(content).encode())

    def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@contextlib.contextmanager
def serving(
    folder: Path,
    identifier: str,
    *,
    kind: str = "dataset",
    fault: Fault = lambda hub, what: False,
) -> Iterator[str]:
    """Serve `folder` as the data set or model `identifier`; yields the address."""
    of = {"folder": folder, "identifier": identifier, "kind": kind, "fault": staticmethod(fault)}
    server = _Server(("127.0.0.1", 0), type("OneHub", (Hub,), of))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    """A server that neither waits for unfinished answers nor reports clients that have gone."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log nothing."""
