"""A deadline for a whole HTTP exchange: connecting, sending, headers, and body together.

The timeout of `requests` is for each read, so that a server that sends one byte at a time keeps a client for ever. Here the
exchange's sockets are shut down at the deadline, which ends whatever waits for them.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool


class Deadline:
    """So many seconds for what happens inside its `with` block through its session."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._end)
        self._timer.daemon = True

    def __enter__(self) -> Deadline:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def session(self) -> requests.Session:
        """A session whose connections end at the deadline."""
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Adapter(self))
        return session

    def watch(self, connected: socket.socket) -> None:
        """Shut a socket down at the deadline, or at once if that has passed."""
        with self._lock:
            self._sockets.append(connected)
            if self.passed:
                _shut(connected)

    def _end(self) -> None:
        with self._lock:
            self.passed = True
            for connected in self._sockets:
                _shut(connected)


def _shut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):  # TLS has no shutdown of its own: the connection under it is what ends
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


class _Adapter(HTTPAdapter):
    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _pools(self._deadline)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = _pools(self._deadline)
        return manager


def _pools(deadline: Deadline) -> dict[str, type[HTTPConnectionPool]]:
    """urllib3's pools, with connections that hand their sockets to the deadline before anything is read from them."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            connected = super()._new_conn()
            deadline.watch(connected)
            return connected

    class Secure(HTTPSConnection):
        def _new_conn(self) -> socket.socket:
            connected = super()._new_conn()
            deadline.watch(connected)
            return connected

        def connect(self) -> None:
            super().connect()
            if self.sock is not None:
                deadline.watch(self.sock)

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
