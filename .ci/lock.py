"""Write constraints.txt: one pin for every distribution that raysweep and all its extras install.

Run `python .ci/lock.py` after a change to the dependencies in pyproject.toml. Pins that are there stay as they are, pins that
nothing needs any more go, and new dependencies get their newest release. To move a pin, change it by hand first. pip resolves
everything and installs nothing.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "constraints.txt"
HEAD = """\
# The complete lock: every distribution that `pip install -c constraints.txt -e '.[EXTRAS]'` installs with all extras, at the
# version that the tests pass with, on Linux with Python 3.11. `python .ci/lock.py` writes this file.
# torch: the build is the package index's choice. A CUDA build adds NVIDIA's libraries and triton, which torch itself pins.
# MLflow: the extra `trackers` takes its client, mlflow-skinny. The full mlflow 3.17 needs pyarrow < 26, raysweep pyarrow >= 26.
"""


def canonical(name: str) -> str:
    """Return a distribution's name in the form in which two spellings of it are equal."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(path: Path = LOCK) -> dict[str, str]:
    """Return version by canonical name; raise ValueError at a line that is not `name==version`."""
    pins: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        found = re.fullmatch(r"([A-Za-z0-9][\w.-]*)==([0-9][\w.!]*)", line)
        if found is None or canonical(found[1]) in pins:
            raise ValueError(f"{path.name}: not one pin of the form name==version, or a second one: {line!r}")
        pins[canonical(found[1])] = found[2]
    return pins


def extras() -> list[str]:
    """Return the names of pyproject.toml's extras."""
    return sorted(
        tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    )


def resolve() -> dict[str, str]:
    """Return the version of every distribution that all extras need, by the name that it has itself."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report"]
        command += [str(report), "--constraint", str(LOCK), f"{ROOT}[{','.join(extras())}]"]
        subprocess.run(command, check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    versions = {item["metadata"]["name"]: item["metadata"]["version"].partition("+")[0] for item in found}
    return {name: version for name, version in versions.items() if name != "raysweep"}


def main() -> None:
    """Resolve and write the file."""
    lines = [f"{name}=={version}\n" for name, version in resolve().items()]
    LOCK.write_text(HEAD + "".join(sorted(lines, key=str.lower)), encoding="utf-8")


if __name__ == "__main__":
    main()
