"""A hub on loopback with one repository at one revision, as far as the hub client asks for it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

REPOSITORY = "someone/small"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def serve(files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """The hub's address and the paths that were asked for, while it runs."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = urlsplit(self.path).path
            asked.append(path)
            of_model, of_file = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/{REVISION}/"
            if path == f"{of_model}/revision/{REVISION}":
                names = [{"rfilename": name} for name in files]
                body = json.dumps({"id": REPOSITORY, "sha": REVISION, "siblings": names}).encode()
            elif path == f"{of_model}/tree/{REVISION}":
                entries = [{"type": "file", "path": n, "size": len(d), "oid": _oid(d)} for n, d in files.items()]
                body = json.dumps(entries).encode()
            elif path.startswith(of_file) and path.removeprefix(of_file) in files:
                body = files[path.removeprefix(of_file)]
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header(
                "Content-Type", "application/json" if path.startswith("/api/") else "application/octet-stream"
            )
            self.send_header("ETag", f'"{_oid(body)}"')
            self.send_header("X-Repo-Commit", REVISION)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
