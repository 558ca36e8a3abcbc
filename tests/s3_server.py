"""moto's S3 server in a process of its own, on loopback, that fails as real ones do: every n-th request, in one of five ways.

As a script it is the server; `serve` starts it for tests and gives a handle on it.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

BUCKET = "runs"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "AKIATESTTESTTEST",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Failing:
    """A WSGI application that passes requests on, and fails every n-th of those that are S3's.

    In turn: 500 and 503 in place of the answer, 500 after the request was carried out, an answer cut in its middle, and a
    connection closed without one.
    """

    WAYS = ("error", "busy", "done, and an error", "cut", "closed")

    def __init__(self, application: Any) -> None:
        self._application = application
        self._lock = threading.Lock()
        self._every = 0
        self._counts: dict[str, int] = {}
        self._ways = itertools.cycle(self.WAYS)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"].startswith("/-tests-/"):
            return self._control(environ, start_response)
        with self._lock:
            self._count("requests")
            self._count(environ["REQUEST_METHOD"])
            fails = self._every and self._counts["requests"] % self._every == 0
            way = next(self._ways) if fails else ""
            if fails:
                self._count(way)
        if way in ("error", "busy"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return _error(start_response, "500 Internal Server Error" if way == "error" else "503 Slow Down")
        if way == "closed":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        if not way:
            return self._application(environ, start_response)
        said: list[Any] = []
        body = b"".join(self._application(environ, lambda *arguments: said.extend(arguments)))
        if way != "cut":
            return _error(start_response, "500 Internal Server Error")
        start_response(*said)
        return self._halved(environ, body)

    def _halved(self, environ: dict[str, Any], body: bytes) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)

    def _count(self, what: str) -> None:
        self._counts[what] = self._counts.get(what, 0) + 1

    def _control(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        with self._lock:
            if environ["REQUEST_METHOD"] == "POST":
                self._every, self._counts = int(environ["PATH_INFO"].rpartition("/")[2]), {}
            answer = json.dumps(self._counts).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
        return [answer]


def _error(start_response: Any, status: str) -> list[bytes]:
    body = b"<Error><Code>InternalError</Code><Message>we failed</Message></Error>"
    if status.startswith("503"):
        body = b"<Error><Code>SlowDown</Code><Message>please wait</Message></Error>"
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


@dataclass(frozen=True)
class S3:
    """A server that runs: its address, and what its tests ask of it."""

    endpoint: str

    @property
    def options(self) -> dict[str, Any]:
        return {"endpoint_url": self.endpoint}

    def url(self, name: str) -> str:
        return f"s3://{BUCKET}/{name}"

    def fail(self, every: int) -> None:
        """Fail every n-th request from now on (0: none), and count anew."""
        self._ask("POST", f"fail/{every}")

    def counts(self) -> dict[str, int]:
        """Requests since then, by method, and failures by way."""
        return dict(self._ask("GET", "counts"))

    def _ask(self, method: str, what: str) -> Any:
        request = urllib.request.Request(f"{self.endpoint}/-tests-/{what}", method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())


@contextmanager
def serve() -> Iterator[S3]:
    """A server on a free port with the bucket BUCKET, gone when the context ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen([sys.executable, __file__, str(port)], env={**os.environ, **CREDENTIALS})
    try:
        s3 = S3(f"http://127.0.0.1:{port}")
        until = time.monotonic() + 60
        while True:
            try:
                s3.counts()
                break
            except OSError:
                assert process.poll() is None, "the S3 server ended"
                assert time.monotonic() < until, "the S3 server does not answer"
                time.sleep(0.05)
        urllib.request.urlopen(urllib.request.Request(f"{s3.endpoint}/{BUCKET}", method="PUT"), timeout=30).close()
        yield s3
    finally:
        process.kill()
        process.wait()


def main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import run_simple

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    application = Failing(DomainDispatcherApplication(create_backend_app))
    run_simple("127.0.0.1", int(sys.argv[1]), application, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
