"""The hub without a network: its cache, and a server that has one data set."""

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

SHA = "0123456789abcdef0123456789abcdef01234567"


def in_hub_cache(root: Path, kind: str, identifier: str) -> Path:
    """Where the hub's cache under HF_HOME keeps the files of a model or a data set."""
    cached = root / "hub" / f"{kind}s--{identifier.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(SHA)
    return cached / "snapshots" / SHA


@contextlib.contextmanager
def serving(folder: Path, identifier: str) -> Iterator[str]:
    """The address under which `folder` is the data set `identifier`, as far as streaming asks."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = urlparse(self.path).path
            if re.fullmatch(f"/api/datasets/{identifier}(/revision/[^/]+)?", path):
                self.answer_json({"id": identifier, "sha": SHA, "siblings": []})
            elif found := re.fullmatch(f"/api/datasets/{identifier}/tree/[^/]+/?(.*)", path):
                self.answer_json([entry(child) for child in sorted((folder / found[1]).iterdir())])
            elif found := re.fullmatch(f"/datasets/{identifier}/resolve/[^/]+/(.*)", path):
                self.answer_file(folder / found[1])
            else:
                self.answer(404, b"")

        do_HEAD = do_GET

        def answer_json(self, content):
            self.answer(200, json.dumps(content).encode())

        def answer_file(self, file):
            if not file.is_file():
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            content, asked = file.read_bytes(), self.headers.get("Range")
            if asked is None:
                self.answer(200, content)
                return
            first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
            part = content[first : last + 1]
            place = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
            self.answer(206, part, {"Content-Range": place})

        def answer(self, status, content, headers=None):
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            """Say nothing."""

    def entry(path: Path) -> dict:
        kind, size = ("file", path.stat().st_size) if path.is_file() else ("directory", 0)
        return {"type": kind, "path": str(path.relative_to(folder)), "size": size, "oid": SHA}

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
