"""Wall-clock seconds of configs/lab/*.yaml, each as a whole process from an empty run folder, and what they answer.

`--only table2 adaptation …` for some of them. Only table2 has a limit: ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine

CONFIGS = Path(__file__).parent.parent / "configs" / "lab"
LIMITS = {"table2": 600}


def main() -> None:
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    for name in parser.parse_args().only:
        with tempfile.TemporaryDirectory() as scratch:
            command = [
                sys.executable,
                "-m",
                "raysweep",
                "run",
                str(CONFIGS / f"{name}.yaml"),
                "--set",
                f"storage={scratch}/run",
            ]
            started = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds = time.perf_counter() - started
        limit = f" (limit {LIMITS[name]})" if name in LIMITS else ""
        print(f"{name}: {seconds:.0f} s{limit}; {machine()}", flush=True)
        for line in done.stdout.splitlines():
            print(f"  {line}")


if __name__ == "__main__":
    main()
