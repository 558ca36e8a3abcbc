"""Memory of a GPU, with torch.cuda's counters replaced: shares of a device, and what is free within them."""

from __future__ import annotations

import pytest
import torch

from raysweep.models import memory
from raysweep.models.memory import free_bytes, hold_to_share, room_left

GB = 10**9


@pytest.fixture
def gpu(monkeypatch):
    """gpu(free, allocated, reserved): an 80 GB device; returns the limits that torch was given, by the device's index."""
    limits = {}
    monkeypatch.setattr(memory, "_shares", {})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: limits.update({device: share})
    )

    def make(free, allocated=0, reserved=0):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * GB))
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: reserved)
        return limits

    return make


def test_all_that_is_free_and_torchs_unused_cache_may_be_taken_without_a_share(gpu):
    gpu(free=30 * GB, allocated=20 * GB, reserved=25 * GB)
    assert free_bytes("cuda") == free_bytes("cuda:0") == int(0.8 * 35 * GB)


def test_a_share_bounds_what_may_be_taken_and_what_torch_gives(gpu):
    limits = gpu(free=70 * GB, allocated=10 * GB, reserved=10 * GB)
    hold_to_share("cuda", 0.25)
    assert limits == {0: 0.25}
    assert (
        free_bytes("cuda") == free_bytes("cuda:0") == int(0.8 * 10 * GB)
    )  # a quarter of 80, less the 10 that it holds
    assert free_bytes("cuda:1") == int(0.8 * 70 * GB)  # another device


def test_a_share_that_others_have_taken_is_not_free(gpu):
    gpu(free=3 * GB)
    hold_to_share("cuda:0", 0.5)
    assert free_bytes("cuda:0") == int(0.8 * 3 * GB)


def test_nothing_is_free_beyond_the_share(gpu):
    gpu(free=40 * GB, allocated=30 * GB, reserved=30 * GB)
    hold_to_share("cuda:0", 0.25)
    assert free_bytes("cuda:0") == 0


def test_a_cpu_has_no_share(gpu):
    limits = gpu(free=0)
    hold_to_share("cpu", 0.5)
    assert limits == {}
    assert memory._shares == {}


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_a_share_outside_0_to_1_is_refused(gpu, share):
    gpu(free=0)
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        hold_to_share("cuda:0", share)


def test_a_budget_on_a_gpu_counts_what_this_process_holds_there(gpu):
    gpu(free=50 * GB, allocated=12 * GB, reserved=20 * GB)
    assert room_left("cuda", 40 * GB) == 28 * GB
    assert room_left("cuda:0", 10 * GB) == -2 * GB
    assert room_left("cuda:0", None) == free_bytes("cuda:0")


def test_a_budget_beyond_the_share_is_the_share(gpu):
    gpu(free=70 * GB, allocated=5 * GB, reserved=5 * GB)
    hold_to_share("cuda:0", 0.25)
    assert room_left("cuda:0", 40 * GB) == 15 * GB
    assert room_left("cuda:0", 12 * GB) == 7 * GB
    assert room_left("cuda:1", 40 * GB) == 35 * GB


def test_a_budget_on_a_cpu_counts_the_programs_own_memory(monkeypatch):
    monkeypatch.setattr(memory, "private_bytes", lambda: 2 * GB)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 7 * GB)
    assert room_left("cpu", 10 * GB) == 8 * GB
    assert room_left("cpu", None) == 7 * GB
