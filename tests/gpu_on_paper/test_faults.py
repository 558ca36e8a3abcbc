"""Memory that runs out at any allocation, and a context that dies: the run goes on, or ends cleanly and is resumed."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from checks import call, found_losses, losses, on_gpu, pair
from pretend import pretended

from raysweep.engine.work import Worker

EVERY = (3, 40, 120, 400, 900)  # while loading, in the probe, in the sweep
MORE = range(5, 1600, 45)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    with pretended():
        return losses(pair(on_gpu()))


@pytest.mark.parametrize("at", [*EVERY, *(pytest.param(n, marks=pytest.mark.soak) for n in MORE)])
def test_memory_that_runs_out_once_changes_no_loss(at: int, expected: np.ndarray) -> None:
    with pretended() as gpu:
        worker = Worker(Path(tempfile.mkdtemp()))
        gpu.fail_at = at
        outcome = worker.attempt(call())
        assert gpu.allocations > at
        np.testing.assert_allclose(found_losses(outcome), expected, rtol=0, atol=1e-5)
        assert outcome.measured["out_of_memory"] == 1
        worker.unload()
        assert gpu.live[0] == 0


def test_a_pair_that_does_not_fit_says_what_to_do_and_leaves_nothing() -> None:
    with pretended() as gpu:
        Worker(Path(tempfile.mkdtemp())).attempt(call())
        weights = gpu.live[0]
    with pretended() as gpu:
        gpu.live[0] += gpu.memory - weights + 1000  # another process's
        worker = Worker(Path(tempfile.mkdtemp()))
        outcome = worker.attempt(call())
        assert outcome.error is not None
        assert "does not fit in the memory of cuda in float32" in outcome.error
        assert "set execution.residency to stream" in outcome.error
        assert outcome.failure == "raised", "another worker may have more memory"
        worker.unload()
        assert gpu.live[0] == gpu.memory - weights + 1000


def test_a_context_that_dies_in_a_sweep_is_reported_and_never_used_again() -> None:
    with pretended() as gpu:
        worker = Worker(Path(tempfile.mkdtemp()))
        gpu.break_at = 300
        outcome = worker.attempt(call())
        assert outcome.failure == "lost"
        assert "illegal memory access" in str(outcome.error)
        before = gpu.operations
        again = worker.attempt(call())
        assert again.failure == "lost"
        assert "dead CUDA context" in str(again.error)
        assert gpu.operations == before
