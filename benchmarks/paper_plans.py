"""The paper's configs planned on paper: how long the whole command takes, and what the plans say of hours, bytes and memory.

Each plan is a command in a process of its own, interpreter and imports included, on one core; its best of a few rounds counts,
for the others measure what else the machine does. The device is an assumption (400 TFLOP/s, 5 GB/s read a node), not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine

LIMIT = 10.0
ROUNDS = 3
RATES = "flops=4e14,read=5e9"
CONFIGS = Path(__file__).parents[1] / "configs" / "paper"


def planned(path: Path, gpus: int) -> tuple[float, dict[str, Any]]:
    """(seconds, the plan as JSON)."""
    command = [sys.executable, "-m", "raysweep", "plan", str(path), "--gpus", str(gpus), "--rates", RATES, "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=folder, env=environment, timeout=600
        )
        return time.perf_counter() - started, json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", help="one config's name, such as table2")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    print(f"plans of configs/paper at {RATES}; {machine()}")
    for path in sorted(CONFIGS.glob("*.yaml")):
        if asked.only not in (None, path.stem):
            continue
        for gpus in (1, 64):
            rounds = [planned(path, gpus) for _ in range(asked.rounds)]
            took, told = min(rounds, key=lambda each: each[0])
            simulation = told["simulation"]
            print(
                f"  {path.stem}, {gpus} GPU{'s' * (gpus > 1)}: planned in {took:.1f} s (limit {LIMIT:g}; all: "
                f"{', '.join(f'{seconds:.1f}' for seconds, _ in rounds)}); sweeps and captures end after "
                f"{simulation['makespan'] / 3600:.3f} h, {simulation['bytes_read'] / 1e12:.2f} TB read",
                flush=True,
            )
        for kind in told["kinds"]:
            print(
                f"    {kind['kind']:<11} {kind['calls']:>5} calls, {kind['seconds'] / 3600:9.3f} h of {kind['on']}, "
                f"{kind['bytes_read'] / 1e9:8.1f} GB read, {kind['memory'] / 1e9:6.1f} GB of a worker"
            )


if __name__ == "__main__":
    main()
