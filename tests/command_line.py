"""The command line in a process of its own, what it said, and what a folder holds."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple


class Result(NamedTuple):
    code: int
    out: str
    err: str


def started(*arguments, **options):
    """`raysweep …` in a process of its own."""
    command = [sys.executable, "-m", "raysweep", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes, **options)


def ended(process):
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out, err)


def content(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
