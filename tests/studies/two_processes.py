"""Run a function in two processes that train together over gloo; the second is forked, so that imports are paid for once.

As a script: `two_processes.py FILE FUNCTION OUT ARGUMENT...`. FUNCTION of FILE gets (rank, argument, ...), and what it returns is
written to OUT/RANK.json.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_in_two(file: str, function: str, out: Path, *arguments: str) -> list[Any]:
    """What the function returns in both processes, by rank."""
    out.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(file).parent), *sys.path]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, __file__, file, function, str(out), *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]


def _main(file: str, function: str, out: str, *arguments: str) -> None:
    specification = importlib.util.spec_from_file_location("told", file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    import transformers.trainer  # noqa: F401

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    child = os.fork()
    rank = int(child == 0)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=port,
    )
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    returned = getattr(module, function)(rank, *arguments)
    (Path(out) / f"{rank}.json").write_text(json.dumps(returned))
    distributed.barrier()
    distributed.destroy_process_group()
    if child:
        status = os.waitpid(child, 0)[1]
        sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    _main(*sys.argv[1:])
