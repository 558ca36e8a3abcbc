"""A loss that is not finite ends a training with the right step, and no step waits for another's value."""

from __future__ import annotations

import pytest
import torch

from raysweep.errors import RunError
from raysweep.studies import step_losses
from raysweep.studies.step_losses import StepLosses

NAN = float("nan")


def added(*losses: float, accumulated: int = 1) -> StepLosses:
    """One after the other, each step of so many micro-batches."""
    found = StepLosses()
    for index, loss in enumerate(losses):
        found.add(torch.tensor(loss), index // accumulated + 1, 0.5)
    return found


def test_a_step_is_named_with_the_last_finite_one() -> None:
    expected = r"the training loss is nan at step 3, learning rate 0\.5; the last finite one was 2 at step 2: lower"
    with pytest.raises(RunError, match=expected):
        added(1, 2, NAN).check()
    with pytest.raises(RunError, match=expected):
        added(1, 2, NAN, 4)
    with pytest.raises(RunError, match=r"is inf at step 1, learning rate 0\.5; no step had a finite one"):
        added(float("inf")).check()


def test_micro_batches_are_summed() -> None:
    with pytest.raises(RunError, match=r"nan at step 2, .*; the last finite one was 3 at step 1"):
        added(1, 2, NAN, 4, accumulated=2).check()


def test_losses_that_were_checked_are_not_checked_again() -> None:
    found = added(1, 2)
    found.check()
    found.check()
    found.add(torch.tensor(NAN), 3, 0.5)
    with pytest.raises(RunError, match="the last finite one was 2 at step 2"):
        found.check()


def test_a_gpus_loss_is_looked_at_two_steps_later(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    class Event:
        """A copy that has ended once it is waited for."""

        def __init__(self, step: int) -> None:
            self._step = step

        def synchronize(self) -> None:
            events.append(f"wait {self._step}")

    def copy(now: step_losses._Step) -> step_losses._Copied:
        events.append(f"copy {now.step}")
        return step_losses._Copied(now.step, now.rate, now.loss, Event(now.step))  # type: ignore[arg-type]

    monkeypatch.setattr(step_losses, "_copy", copy)
    found = StepLosses()
    for step in (1, 2, 3):
        for _ in range(4):
            found.add(torch.tensor(1.0), step, 0.5)
        events.append(f"end {step}")
    found.check()
    assert events == ["end 1", "copy 1", "end 2", "wait 1", "copy 2", "end 3", "wait 2", "copy 3", "wait 3"]
