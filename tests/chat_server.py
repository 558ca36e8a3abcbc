"""A chat completions server on loopback, which counts what it is asked and answers as a test tells it to."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def completion(content: object) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


GOOD = completion("It declines.\nScore: 4")
# What the server does with a request: a status, headers and a body; or `hang up`, or `sleep`.
Act = tuple[int, dict[str, str], bytes] | str


@dataclass
class Server:
    """What came (path, headers, body, time), and what is still to be done before all that follows is answered well."""

    url: str = ""
    acts: list[Act] = field(default_factory=list)
    default: Act = (200, {}, GOOD)
    came: list[tuple[str, dict[str, str], Any, float]] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0


@contextmanager
def serve_chat(port: int = 0) -> Iterator[Server]:
    """A server while the block lasts, at a free port unless one is given."""
    told, lock = Server(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                told.came.append((self.path, dict(self.headers), body, time.monotonic()))
                act = told.acts.pop(0) if told.acts else told.default
                told.at_once += 1
                told.most_at_once = max(told.most_at_once, told.at_once)
            try:
                self._do(act)
            finally:
                with lock:
                    told.at_once -= 1

        def _do(self, act: Act) -> None:
            if act == "hang up":
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if act == "cut":
                self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 500\r\n\r\n{")
                return
            if act == "sleep":
                time.sleep(0.4)
                return
            if act == "slow":
                time.sleep(0.05)
                act = (200, {}, GOOD)
            assert not isinstance(act, str)
            status, headers, data = act
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    told.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield told
    finally:
        http.shutdown()
        thread.join()
        http.server_close()
