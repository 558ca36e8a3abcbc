"""Frozen tensors are held to their bits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raysweep.errors import RunError
from raysweep.studies.frozen import Kept, compare, digests, own_tensors


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(4, 2), nn.Linear(2, 4, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("table", torch.zeros(2), persistent=False)


def test_a_tied_tensor_counts_once_and_buffers_that_are_not_stored_do_not() -> None:
    names = set(own_tensors(Tied()))
    assert names == {
        "embed.weight",
        *(f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    }


def test_a_single_bit_shape_or_dtype_is_another_digest() -> None:
    ones = torch.ones(4)
    nearly = ones.clone()
    nearly[2] = torch.nextafter(nearly[2], torch.tensor(2.0))
    same, *others = digests(
        {"same": ones.clone(), "bit": nearly, "shape": ones.reshape(2, 2), "dtype": ones.view(torch.int32)}
    ).values()
    assert digests({"ones": ones})["ones"] == same
    assert same not in others
    zero = digests({"zero": torch.zeros(1), "minus": -torch.zeros(1), "turned": torch.ones(2, 3).T})
    assert zero["zero"] != zero["minus"]


def test_what_moved_is_told_and_what_should_have() -> None:
    before = dict.fromkeys(("a", "b", "c", "d"), "old")
    assert compare(before, {**before, "a": "new"}, {"a", "b"}) == Kept(frozen=2, changed=1, unchanged=("b",))
    with pytest.raises(RunError, match=r"2 tensors that should stay frozen have changed: c, d; the training"):
        compare(before, {"a": "new", "b": "new", "c": "new"}, {"a", "b"})
    with pytest.raises(RunError, match=r"none of the 1 trained tensors changed"):
        compare(before, before, {"a"})
