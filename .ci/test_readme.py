"""The commands of README.md, the quickstart and the how-to guides: each ```sh and ```python block, in order, as a reader types them.

All run in one scratch folder: a guide may use what the quickstart made. Blocks marked ```bash and ```yaml are only parsed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md", *sorted((ROOT / "docs" / "how-to").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(page, kind, text) for page in PAGES for kind, text in BLOCK.findall(page.read_text(encoding="utf-8"))]
RUN = [block for block in BLOCKS if block[1] in ("sh", "python")]
PARSED = [block for block in BLOCKS if block[1] in ("bash", "yaml")]


def names(blocks: list[tuple[Path, str, str]]) -> list[str]:
    return [f"{page.stem}-{number}-{text.split()[0]}" for number, (page, _, text) in enumerate(blocks)]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.mark.parametrize(("page", "kind", "text"), RUN, ids=names(RUN))
def test_a_block_runs(scratch: Path, page: Path, kind: str, text: str) -> None:
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


@pytest.mark.parametrize(("page", "kind", "text"), PARSED, ids=names(PARSED))
def test_a_block_is_valid(page: Path, kind: str, text: str) -> None:
    if kind == "yaml":
        assert all(isinstance(document, dict | list) for document in yaml.safe_load_all(text))
    else:
        done = subprocess.run(["bash", "-n"], input=text, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 7000


def test_the_quickstart_has_ten_commands() -> None:
    commands = [text for page, kind, text in RUN if page.stem == "quickstart" and kind == "sh"]
    assert [len(text.splitlines()) for text in commands] == [1] * 10
