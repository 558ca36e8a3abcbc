"""Measure where calls will run: a function goes there, and plain values come back. Each backend decides where that is."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from raysweep.engine.events import WORKERS_UNMEASURED, Listener

T = TypeVar("T")

SECONDS = 60.0  # after which a plan does without a measurement
_CHILD = "from raysweep.engine.measuring import _answer; _answer()"


@dataclass(frozen=True)
class Measured(Generic[T]):
    """What a function returned, one value for each kind of machine.

    `where` names the machines in words. `why` says why there is no value, and is empty if there is one.
    """

    values: tuple[T, ...]
    where: str = "this machine"
    why: str = ""


class Measure(Protocol):
    """Run a function of a module, with arguments that can be pickled, where calls will run."""

    def __call__(self, function: Callable[..., T], *arguments: Any) -> Measured[T]:
        """Return what it returned."""


def measure_here(function: Callable[..., T], *arguments: Any) -> Measured[T]:
    """Run the function in this process."""
    return Measured((function(*arguments),))


def measure_apart(gpus: float, function: Callable[..., T], *arguments: Any) -> Measured[T]:
    """Run the function in a new process on this machine, as a worker with `gpus` GPUs. The process ends afterwards.

    A CUDA context, which takes hundreds of MB of a GPU, ends with it.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment["CUDA_VISIBLE_DEVICES"] = _first_gpus(gpus)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=pickle.dumps((gpus, function, arguments)),
            capture_output=True,
            env=environment,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return Measured((), why=f"a process on this machine gave no result within {SECONDS:.0f} s")
    except subprocess.CalledProcessError as error:
        return Measured(
            (), why=f"measuring failed on this machine ({last_line(error.stderr.decode(errors='replace'))})"
        )
    return Measured((pickle.loads(ended.stdout),))


def reported(measure: Measure, listener: Listener | None) -> Measure:
    """Return `measure`, which also reports the first measurement that gave nothing."""
    reasons: list[str] = []

    def run(function: Callable[..., T], *arguments: Any) -> Measured[T]:
        found = measure(function, *arguments)
        if found.why and not reasons and listener:
            listener({"event": WORKERS_UNMEASURED, "why": found.why})
            reasons.append(found.why)
        return found

    return run


def run_as_worker(gpus: float, function: Callable[..., T], *arguments: Any) -> T:
    """Run the function in this process, limited to the share of a GPU that a worker with `gpus` GPUs has."""
    keep_to_share(gpus)
    return function(*arguments)


def keep_to_share(gpus: float) -> None:
    """Limit this process, a worker's, to its share of the one GPU that it sees. Does nothing for whole GPUs."""
    if not 0 < gpus < 1:
        return
    import torch

    from raysweep.models.memory import hold_to_share

    if torch.cuda.is_available():
        hold_to_share("cuda", gpus)


def last_line(text: str) -> str:
    """Return the last line that is not blank: the exception itself, in the text of a traceback."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no message")


def _first_gpus(gpus: float) -> str:
    """The GPUs of this machine that a worker with so many sees, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = max(1, int(gpus))
    return ",".join(map(str, range(wanted)) if visible is None else visible.split(",")[:wanted])


def _answer() -> None:
    """Run what standard input holds and write its result to standard output, whatever else the process prints."""
    out = os.dup(1)
    os.dup2(2, 1)
    gpus, function, arguments = pickle.load(sys.stdin.buffer)
    result = pickle.dumps(run_as_worker(gpus, function, *arguments))
    with os.fdopen(out, "wb") as file:
        file.write(result)
