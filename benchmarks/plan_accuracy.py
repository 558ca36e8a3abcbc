"""How far a plan's estimate is off: estimated ÷ real for the laboratory's pair, its layers resident and streamed.

Each run is a process of its own, for its peak memory (its anonymous pages, looked at every 20 ms); its time is that of its
sweep and capture calls, loading included. Bytes and layer applications are counted by the workers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile

from common import machine

LIMITS = {"layer_applications": (1.0, 1.0), "bytes_read": (1.0, 1.0), "seconds": (0.5, 2.0), "memory": (0.8, 1.25)}


def child(mode: str, limit: int, storage: str) -> None:
    import raysweep as rs

    done = rs.run(
        {
            "name": "accuracy",
            "models": [{"name": "tiny", "base": "lab://tiny", "tuned": {"sums": "lab://tiny/sums"}}],
            "datasets": [{"name": "sums", "path": "lab://sums/test", "format": "gsm8k", "limit": limit}],
            "studies": {"substitution": {"widths": [5]}, "similarity": {}},
            "execution": {"device": "cpu", "residency": mode},
            "storage": storage,
        }
    )
    assert done.accuracy is not None
    assert done.accuracy.is_whole
    print(json.dumps({name: list(pair) for name, pair in done.accuracy.pairs.items()}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=int, default=128, help="examples")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child")
    parser.add_argument("--storage")
    asked = parser.parse_args()
    if asked.child:
        child(asked.child, asked.limit, asked.storage)
        return
    print(f"estimated ÷ real; {machine()}", flush=True)
    for mode in ("resident", "stream"):
        for _ in range(asked.rounds):
            with tempfile.TemporaryDirectory() as scratch:
                command = [sys.executable, __file__, "--child", mode, "--limit", str(asked.limit)]
                said = subprocess.run(
                    [*command, "--storage", f"{scratch}/run"], check=True, capture_output=True, text=True
                ).stdout
            found = json.loads(said.splitlines()[-1])
            told = []
            for name, (low, high) in LIMITS.items():
                estimated, real = found[name]
                ratio = estimated / real
                within = "" if low <= ratio <= high else " NOT WITHIN"
                told.append(f"{name} {ratio:.3f} of {real:,.2f} ({low:g} to {high:g}{within})")
            print(f"  {mode:<8} {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
