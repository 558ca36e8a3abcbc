"""Losses of a training's steps: one that is not finite ends the training, and finding out does not hold up the GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from raysweep.errors import RunError


@dataclass
class _Step:
    """A step's loss so far (a scalar on its device, summed over micro-batches), and the learning rate it was trained with."""

    step: int
    rate: float
    loss: torch.Tensor


@dataclass(frozen=True)
class _Copied:
    """A step's loss on its way to the CPU."""

    step: int
    rate: float
    loss: torch.Tensor
    copied: torch.cuda.Event | None

    def value(self) -> float:
        if self.copied is not None:
            self.copied.synchronize()
        return float(self.loss)


class StepLosses:
    """The losses of the current step and of the one before.

    The previous step's is copied to the CPU when the current step's first loss comes in, and looked at when the next one's
    does: by then the copy has long ended, so nothing waits. `check` looks at all of them at once, and waits.
    """

    def __init__(self) -> None:
        self._now: _Step | None = None
        self._copied: _Copied | None = None
        self._finite: tuple[int, float] | None = None  # the last step whose loss is known to be finite

    def add(self, loss: torch.Tensor, step: int, rate: float) -> None:
        """Add a micro-batch's loss to that of its step. Raises RunError if an earlier step's is not finite."""
        if self._now is not None and self._now.step == step:
            self._now.loss = self._now.loss + loss
            return
        self._look()
        if self._now is not None:
            self._copied = _copy(self._now)
            if self._copied.copied is None:
                self._look()
        self._now = _Step(step, rate, loss.detach())

    def check(self) -> None:
        """Raise RunError unless all losses so far are finite."""
        self._look()
        if self._now is not None:
            self._copied, self._now = _copy(self._now), None
            self._look()

    def _look(self) -> None:
        copied, self._copied = self._copied, None
        if copied is None:
            return
        value = copied.value()
        if not math.isfinite(value):
            raise not_finite("training loss", value, copied.step, copied.rate, self._finite)
        self._finite = (copied.step, value)


def _copy(now: _Step) -> _Copied:
    """Begin to copy a loss to the CPU; one that is there is taken as it is."""
    if not now.loss.is_cuda:
        return _Copied(now.step, now.rate, now.loss, None)
    there = torch.empty((), dtype=now.loss.dtype, pin_memory=True)
    there.copy_(now.loss, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(now.loss.device))
    return _Copied(now.step, now.rate, there, copied)


def not_finite(what: str, value: float, step: int, rate: float, last: tuple[int, float] | None) -> RunError:
    """The refusal of a loss that is not finite."""
    before = f"the last finite one was {last[1]:.4g} at step {last[0]}" if last else "no step had a finite one"
    return RunError(
        f"the {what} is {value} at step {step}, learning rate {rate:.3g}; {before}: lower learning_rate, warm up "
        "longer, or train in float32 or bf16"
    )
