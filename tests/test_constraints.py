"""constraints.txt is the complete lock: one plain pin for each installed distribution and each dependency in pyproject.toml."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / ".ci"))

from lock import canonical, read_pins  # noqa: E402

NOT_LOCKED = {"raysweep", "pip", "wheel"}  # this package, and what installs it


def dependencies() -> dict[str, list[str]]:
    """Direct dependencies by extra; "" has those of the package itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {"": project["dependencies"], **project["optional-dependencies"]}


def differing(pins: dict[str, str], installed: dict[str, str]) -> list[str]:
    """Installed distributions that are not pinned at their version; a local version (`+cpu`) is the package index's."""
    return sorted(
        f"{name}=={version} is installed, and constraints.txt has {pins.get(name)}"
        for name, version in installed.items()
        if name not in NOT_LOCKED and pins.get(name) != version.partition("+")[0]
    )


def test_each_installed_distribution_is_pinned_at_its_version():
    installed = {canonical(found.metadata["Name"]): found.version for found in metadata.distributions()}
    assert differing(read_pins(), installed) == []


@pytest.mark.parametrize("extra", dependencies())
def test_each_direct_dependency_is_pinned(extra):
    names = {canonical(re.split(r"[^\w.-]", entry)[0]) for entry in dependencies()[extra]}
    assert names - set(read_pins()) == set()


def test_torch_is_pinned_without_a_build():
    assert read_pins()["torch"] == "2.13.0"


def test_pins_are_sorted():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins == sorted(pins, key=str.lower)


@pytest.mark.parametrize(
    "line",
    [
        "numpy>=2",
        "torch==2.13.0+cpu",
        "rich==15.0.0 --hash=sha256:0",
        "rich @ file:///rich",
        "--index-url https://x",
        "rich",
    ],
)
def test_anything_but_a_plain_pin_is_refused(tmp_path, line):
    path = tmp_path / "constraints.txt"
    path.write_text(f"# pins\nsix==1.17.0\n{line}\n")
    with pytest.raises(ValueError, match="not one pin"):
        read_pins(path)


def test_a_second_pin_of_a_distribution_is_refused(tmp_path):
    path = tmp_path / "constraints.txt"
    path.write_text("typing_extensions==4.16.0\ntyping-extensions==4.16.0\n")
    with pytest.raises(ValueError, match="a second one"):
        read_pins(path)


def test_another_version_and_a_missing_pin_are_found():
    found = differing({"six": "1.17.0", "torch": "2.13.0"}, {"six": "1.16.0", "torch": "2.13.0+cpu", "rich": "15.0.0"})
    assert found == [
        "rich==15.0.0 is installed, and constraints.txt has None",
        "six==1.16.0 is installed, and constraints.txt has 1.17.0",
    ]
