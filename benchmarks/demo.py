"""Wall-clock seconds and peak memory of `raysweep demo` as a whole process."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time

from common import machine


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "raysweep", "demo", "--out", f"{scratch}/demo"], check=True, capture_output=True
        )
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"raysweep demo: {seconds:.1f} s (limit 60), peak memory {peak / 1e9:.2f} GB (limit 2.5); {machine()}")


if __name__ == "__main__":
    main()
