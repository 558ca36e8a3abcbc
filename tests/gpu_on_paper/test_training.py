"""What a training asks of the GPU between two steps: nothing that waits for it.

torch cannot differentiate on a pretended GPU, so the pieces are tested that raysweep adds to transformers' trainer.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pretend import Machine, OnGpu

from raysweep.errors import RunError
from raysweep.studies.step_losses import StepLosses
from raysweep.studies.trainer import IGNORED, response_losses

GPU = torch.device("cuda:0")


def test_losses_of_test_examples_are_measured_without_waiting(gpu: Machine) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 600, 11), torch.randint(0, 11, (3, 600))
    labels[0, :590], labels[1, 7:], labels[2] = IGNORED, IGNORED, IGNORED
    expected = response_losses(logits, labels)
    given = OnGpu(logits, GPU), OnGpu(labels, GPU)
    gpu.forget()
    found = response_losses(*given)
    assert gpu.waits == {}
    assert torch.equal(found.cpu()[:2], expected[:2])
    assert bool(found.cpu()[2].isnan())


class Event:
    """An event of torch.cuda, which nothing waits for unless it is asked to."""

    waited = 0

    def record(self, stream: Any = None) -> None:
        """Take note of what was given to the stream."""

    def synchronize(self) -> None:
        Event.waited += 1


def test_a_step_waits_for_no_loss(gpu: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: None)
    monkeypatch.setattr(Event, "waited", 0)
    losses = StepLosses()
    values = [OnGpu(torch.tensor(value), GPU) for value in (1.0, 2.0, float("nan"))]
    gpu.forget()
    for step, value in enumerate(values, start=1):
        for _ in range(4):
            losses.add(value, step, 0.5)
    assert gpu.waits == {}
    assert Event.waited == 1, "of three steps, the first one's loss was looked at"
    with pytest.raises(RunError, match=r"the training loss is nan at step 3, .*; the last finite one was 8 at step 2"):
        losses.check()
