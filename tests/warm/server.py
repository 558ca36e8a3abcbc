"""Workers of Ray forked from a process that has imported what they need.

A process serves all that see the same files. It ends with the tests, whose process is named in the folder RAYSWEEP_WARM, where its
socket is. A file there by a worker's process number has that of the process that Ray started, as whose child it would be found
otherwise.
"""

from __future__ import annotations

import fcntl
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

# All but Ray, which settles on a worker's job and token as it is imported.
_PRELOADED = (
    "raysweep.engine.work",
    "raysweep.studies.finetune",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
)


def serve_as(arguments: list[str], environment: dict[str, str]) -> None:
    """Have the server fork `python ARGUMENTS` with this process's files and folder; end as that ends."""
    folder = Path(os.environ["RAYSWEEP_WARM"])
    with _connected(folder / f"files-{Path('/proc/self/ns/mnt').stat().st_ino}") as line:
        asked = json.dumps([arguments, environment, str(Path.cwd()), os.getpid()]).encode()
        socket.send_fds(line, [len(asked).to_bytes(4, "big")], [0, 1, 2])
        line.sendall(asked)
        code = int.from_bytes(line.recv(4), "big", signed=True)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


def _connected(path: Path) -> socket.socket:
    """A connection to the server there, which is started if there is none."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = socket.socket(socket.AF_UNIX)
        if line.connect_ex(str(path)) == 0:
            return line
        path.unlink(missing_ok=True)
        with path.with_suffix(".log").open("wb") as log:
            subprocess.Popen(
                [sys.executable, __file__, str(path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while line.connect_ex(str(path)) != 0:
            time.sleep(0.05)
        return line


class _Server:
    """Forks workers, and tells each one's end to who asked for it; who is gone takes its worker along."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owner = int((path.parent / "owner").read_text())
        self._lines: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def serve(self) -> None:
        """Until the tests have ended."""
        while self._path.exists() and Path(f"/proc/{self._owner}").exists():
            for key, _ in self._selector.select(1):
                if key.data is None:
                    self._fork()
                elif isinstance(key.fileobj, int):
                    self._ended(key.fileobj, key.data)
                else:  # nothing is said on it but that it is closed
                    self._selector.unregister(key.fileobj)
                    os.kill(key.data, signal.SIGKILL)
        for pid in self._lines:
            os.kill(pid, signal.SIGKILL)

    def _fork(self) -> None:
        line = self._listener.accept()[0]
        size, files, _, _ = socket.recv_fds(line, 4, 3)
        text = b""
        while len(text) < int.from_bytes(size, "big"):
            text += line.recv(1 << 16)
        arguments, environment, cwd, asker = json.loads(text)
        pid = os.fork()
        if not pid:
            for open_line in (*self._lines.values(), line, self._listener):
                open_line.close()
            self._selector.close()
            _become(arguments, environment, cwd, files)
        for file in files:
            os.close(file)
        (self._path.parent / str(pid)).write_text(str(asker))
        self._lines[pid] = line
        self._selector.register(line, selectors.EVENT_READ, pid)
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)

    def _ended(self, file: int, pid: int) -> None:
        self._selector.unregister(file)
        os.close(file)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        line = self._lines.pop(pid)
        if line in self._selector.get_map():
            self._selector.unregister(line)
            line.sendall(code.to_bytes(4, "big", signed=True))
        line.close()
        (self._path.parent / str(pid)).unlink()


def _become(arguments: list[str], environment: dict[str, str], cwd: str, files: list[int]) -> None:
    """Be `python ARGUMENTS`, until it ends."""
    import random
    import runpy

    os.setpgid(0, 0)  # Ray ends a worker's whole group after it
    for descriptor, file in enumerate(files):
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    random.seed()
    run_as_program(lambda: runpy.run_path(arguments[0], run_name="__main__"))


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))
    from program import run_as_program

    sys.path.pop()  # no worker is to find tests
    server = _Server(Path(sys.argv[1]))
    import gc
    import importlib

    gc.disable()
    for name in _PRELOADED:
        importlib.import_module(name)
    assert "ray" not in sys.modules
    gc.freeze()
    gc.enable()
    server.serve()
