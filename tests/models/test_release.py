"""Memory that is given back with the collector off: of exceptions, and of models that are in reference cycles."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from weakref import ref

import pytest
import torch
from transformers import PreTrainedModel

from raysweep.models.release import Watched, drop_locals, free_memory


@pytest.fixture(autouse=True)
def _no_collections() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_what_failed_holds_no_tensor_and_still_has_its_lines() -> None:
    held = []

    def fails(weight: torch.Tensor) -> None:
        doubled = 2 * weight
        held.extend([ref(weight), ref(doubled)])
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner

    def in_a_thread() -> None:
        waiting = ThreadPoolExecutor(1).submit(fails, torch.ones(2))
        waiting.result()  # an exception that its own traceback holds

    with pytest.raises(ValueError, match="outer") as raised:
        in_a_thread()
    lines = traceback.format_exception(raised.value)
    drop_locals(raised.value)
    assert [tensor() for tensor in held] == [None, None]
    assert traceback.format_exception(raised.value) == lines
    assert "raise KeyError" in "".join(lines)


def test_a_copy_of_variables_that_somebody_looked_at_goes_as_well() -> None:
    def fails() -> None:
        weight = torch.ones(2)
        held.append(ref(weight))
        raise ValueError("failed")

    held: list[ref[torch.Tensor]] = []
    with pytest.raises(ValueError, match="failed") as raised:
        fails()
    assert "weight" in raised.traceback[-1].frame.f_locals
    drop_locals(raised.value)
    assert held[0]() is None


def test_models_are_watched_without_being_kept(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny("llama", 1)
    watched = Watched([model])
    assert watched.is_alive
    kept = model.lm_head.weight
    del model
    assert watched.is_alive, "one weight is enough"
    del kept
    assert not watched.is_alive


def test_a_model_in_a_cycle_goes_if_it_is_collected(tiny: Callable[..., PreTrainedModel]) -> None:
    model = tiny("llama", 1)
    model.itself = model.forward
    watched = Watched([model])
    del model
    free_memory(collect=False)
    assert watched.is_alive
    free_memory()
    assert not watched.is_alive
