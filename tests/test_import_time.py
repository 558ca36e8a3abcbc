"""`import raysweep` and `raysweep --help` answer at once: nothing heavy is loaded before it is used."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = {"torch", "transformers", "pandas", "matplotlib", "datasets", "scipy", "pyarrow"}
SECONDS = 0.5
TRIES = 8  # the fastest counts: the others measure what else the machine does

IMPORT = "import raysweep"
HELP = "import sys; sys.argv = ['raysweep', '--help']; from raysweep.cli import main; main()"
STATUS = """
from raysweep.api import status
from raysweep.errors import InputError
try:
    status('nowhere')
except InputError:
    pass
"""
LOADED = f"import atexit, sys; atexit.register(lambda: print(*sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr))"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("code", [IMPORT, HELP], ids=["import raysweep", "raysweep --help"])
def test_answers_at_once(code):
    fastest = float("inf")
    for _ in range(TRIES):
        started = time.perf_counter()
        done = python(code)
        fastest = min(fastest, time.perf_counter() - started)
        assert done.returncode == 0, done.stderr
        if fastest < SECONDS:
            return
    pytest.fail(f"took {fastest:.2f} s at best of {TRIES}")


@pytest.mark.parametrize(
    "code",
    [
        IMPORT,
        HELP,
        "import raysweep; raysweep.InputError; dir(raysweep)",
        "from raysweep.config import parse_config; from raysweep.recipes import TEMPLATE; import yaml; parse_config(yaml.safe_load(TEMPLATE))",
    ],
    ids=["import raysweep", "raysweep --help", "its errors", "a config"],
)
def test_loads_nothing_heavy(code):
    done = python(f"{LOADED}; {code}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""


def test_a_runs_status_loads_nothing_that_models_need():
    done = python(f"{LOADED}; exec({STATUS!r})")
    assert (done.returncode, done.stderr.strip()) == (0, "pyarrow")


def test_the_check_sees_what_is_loaded():
    assert python(f"{LOADED}; import pyarrow").stderr.split() == ["pyarrow"]
