"""The command line in a process of its own, what it said, and what a folder holds.

A process is forked from a server that has imported what takes long: many tests start many, and the import would be most of
what they take. That `python -m raysweep` and the script begin in the same way is test_ends.py's.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from program import run_as_program

# The command line's own, which transformers reads as it is imported.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "raysweep.cli",
        "raysweep.engine.driver",
        "raysweep.report.stored",
        "transformers.modeling_utils",
        "transformers.models.auto.modeling_auto",
        "transformers.models.llama.modeling_llama",
    ]
)


# A function that gives a context, and its arguments.
Within = tuple[Callable[..., AbstractContextManager[object]], tuple[object, ...]]


class Result(NamedTuple):
    code: int
    out: str
    err: str


class Process:
    """`raysweep …` in a process of its own, to be used as a Popen whose output is kept."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path | None = None,
        within: Within | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._out, self._err = (Path(self._folder.name) / name for name in ("out", "err"))
        where = (str(cwd or Path.cwd()), str(self._out), str(self._err))
        self._process = _SERVER.Process(target=_serve, args=(list(arguments), dict(environment), *where, within))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def said(self) -> str:
        """Its standard output until now."""
        return self._out.read_text() if self._out.exists() else ""

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("raysweep", timeout or 0)
        if self._out.exists():
            self._said = (self._out.read_text(), self._err.read_text())
            self._folder.cleanup()
        return self._said

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _serve(
    arguments: list[str], environment: dict[str, str], cwd: str, out: str, err: str, within: Within | None
) -> None:
    """The process itself."""
    gc.freeze()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    sys.argv = ["raysweep", *arguments]
    if within is None:
        run_as_program(_main)
    make, given = within
    with make(*given):
        run_as_program(_main)


def _main() -> None:
    import torch

    from raysweep.cli import main

    if stale := os.environ.get(
        "RAYSWEEP_STALE"
    ):  # of a lock in an object store, in seconds: tests do not wait for minutes
        from raysweep.store import object_lock

        object_lock.BEAT_SECONDS, object_lock.STALE_SECONDS = float(stale) / 6, float(stale)
    torch.set_num_threads(1)  # as a program that had imported it by itself would have by OMP_NUM_THREADS
    main()


def started(*arguments: object, cwd: Path | None = None, within: Within | None = None, **environment: str) -> Process:
    """`raysweep …` in a process of its own, in this folder, with these environment variables more, within a context."""
    return Process([*map(str, arguments)], {**os.environ, "OMP_NUM_THREADS": "1", **environment}, cwd, within)


def ended(process: Process) -> Result:
    out, err = process.communicate(timeout=120)
    assert process.returncode is not None
    return Result(process.returncode, out, err)


def content(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
