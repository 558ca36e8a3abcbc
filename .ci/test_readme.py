"""README's commands: every ```sh and ```python block, in order, in one scratch folder, as a reader would type them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"^```(sh|python)\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "Makefile"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.mark.parametrize(
    ("kind", "text"), BLOCKS, ids=[f"{number}-{text.split()[0]}" for number, (_, text) in enumerate(BLOCKS)]
)
def test_a_block_runs(scratch: Path, kind: str, text: str) -> None:
    lines = [line for line in text.splitlines() if not line.startswith("make test")]  # which runs this
    command = ["bash", "-euo", "pipefail", "-c"] if kind == "sh" else [sys.executable, "-c"]
    # A reader's environment: neither the tests' warm workers nor the make that runs the tests.
    ours = ("RAYSWEEP_", "PYTHONPATH", "PYTEST_", "MAKE", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment["PATH"] = f"{ROOT / '.venv' / 'bin'}:{environment['PATH']}"
    done = subprocess.run(
        [*command, "\n".join(lines)],
        cwd=ROOT if "make " in text else scratch,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    if "make demo" in text:  # the values of its tables, while they are there
        sys.path.insert(0, str(ROOT / "tests"))
        from demo_tables import differences

        assert differences(ROOT / "runs" / "demo" / "results") == []
