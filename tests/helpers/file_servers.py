"""A web server of files that can be cut off, and that goes on where a client stopped."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Files:
    address: str
    files: dict[str, bytes] = field(default_factory=dict)  # path -> content
    headers: dict[str, dict[str, str]] = field(default_factory=dict)  # path -> more of an answer's
    asked: list[tuple[str, str]] = field(default_factory=list)  # path, range
    cut: int | None = None  # bytes after which the next answer ends
    ranges: bool = True
    moved: dict[str, str] = field(default_factory=dict)  # path -> another address


def tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:16]}"'


@contextlib.contextmanager
def files(**settings: object) -> Iterator[Files]:
    served: Files

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            wanted = self.headers.get("Range", "")
            served.asked.append((path, wanted))
            if path in served.moved:
                return self._head(302, {"Location": served.moved[path], "Content-Length": "0"})
            if path not in served.files:
                return self._head(404, {"Content-Length": "0"})
            content = served.files[path]
            start, more = 0, {"ETag": tag(content), **served.headers.get(path, {})}
            found = re.fullmatch(r"bytes=(\d+)-", wanted)
            if served.ranges and found and self.headers.get("If-Range", more["ETag"]) == more["ETag"]:
                start = int(found[1])
                more["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._head(206 if start else 200, {"Content-Length": str(len(content) - start), **more})
            if body:
                cut, served.cut = served.cut, None
                self.wfile.write(content[start:] if cut is None else content[start : start + cut])
            return None

        def _head(self, status: int, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Files(f"http://127.0.0.1:{server.server_port}")
    for name, value in settings.items():
        setattr(served, name, value)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
