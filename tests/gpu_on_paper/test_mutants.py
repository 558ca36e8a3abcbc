"""The checks hold, and each can fail: a mistake made on purpose in raysweep's source ends in a failed check."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from checks import CHECKS
from mutants import mutated


@dataclass(frozen=True)
class Mutant:
    """`new` in place of `old` in a module of raysweep's, which the check of this name has to notice."""

    module: str
    old: str
    new: str
    check: str


MUTANTS: dict[str, Mutant] = {}


@pytest.mark.parametrize("name", CHECKS)
def test_the_check_holds(name: str) -> None:
    CHECKS[name]()
