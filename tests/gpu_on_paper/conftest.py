"""A pretended GPU for each test that asks for one; none is left over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pretend import Machine, pretended


@pytest.fixture
def gpu() -> Iterator[Machine]:
    with pretended() as machine:
        yield machine


@pytest.fixture
def two_gpus() -> Iterator[Machine]:
    with pretended(2) as machine:
        yield machine
