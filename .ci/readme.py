"""Run every ```sh and ```python block of a Markdown file, in order, in one scratch folder; stop at the first failure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Run the file named on the command line."""
    page = Path(sys.argv[1]).resolve()
    root = page.parent
    environment = {**os.environ, "PATH": f"{root / '.venv' / 'bin'}:{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("configs", "Makefile"):
            (Path(scratch) / name).symlink_to(root / name)
        for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            text = "".join(
                line for line in text.splitlines(keepends=True) if not line.startswith("make test")
            )  # CI's own step
            print(f"--- {kind}\n{text}", flush=True)
            where = root if "make " in text else scratch
            command = ["bash", "-euo", "pipefail", "-c", text] if kind == "sh" else [sys.executable, "-c", text]
            began = time.monotonic()
            subprocess.run(command, cwd=where, env=environment, check=True)
            print(f"--- {time.monotonic() - began:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
