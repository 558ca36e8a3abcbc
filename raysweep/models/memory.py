"""How much memory there is: what this process has for itself, and what is free on a device. Bytes."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import torch

_SHARE_OF_FREE = 0.8  # what other processes and allocators' slack may take meanwhile stays free

_shares: dict[int, float] = {}  # the share of a GPU's memory that this process may use, by the GPU's index


def private_bytes() -> int:
    """Memory that this process has for itself (anonymous pages): it counts against a budget. Files that are only mapped do not.

    Where the system does not tell (it is Linux's), an estimate for an interpreter with torch and transformers.
    """
    return _anonymous_bytes() or 512 * 2**20


class Peak:
    """The greatest memory that the process has for itself while it lasts (on a CUDA device: its tensors there), in `bytes`.

    A thread looks at the kernel's count of anonymous pages every 20 ms, which costs next to nothing; what is shorter is missed.
    0 where the system does not tell.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.bytes = 0
        self._device = device
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="raysweep-memory", daemon=True)

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, _anonymous_bytes())
            if self._over.wait(0.02):
                return

    def __enter__(self) -> Peak:
        if self._device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._device.startswith("cuda"):
            self.bytes = int(torch.cuda.max_memory_allocated(self._device))
            return
        self._over.set()
        self._thread.join()
        self.bytes = max(self.bytes, _anonymous_bytes())


def held_bytes(device: str) -> int:
    """The memory that this process has for itself now (on a CUDA device: its tensors there); 0 where the system does not tell."""
    return int(torch.cuda.memory_allocated(device)) if device.startswith("cuda") else _anonymous_bytes()


def _anonymous_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def room_left(device: str, budget: int | None) -> int:
    """What may still be taken on the device: of a budget what this process does not hold yet, without one what is free.

    On a GPU the process holds its tensors there, and a budget beyond its share counts as the share. Less than 0 if more is
    held already.
    """
    if budget is None:
        return free_bytes(device)
    if device.startswith("cuda"):
        index = _index(device)
        if index in _shares:
            budget = min(budget, int(_shares[index] * torch.cuda.mem_get_info(index)[1]))
        return budget - int(torch.cuda.memory_allocated(index))
    return budget - (private_bytes() if device == "cpu" else 0)


def hold_to_share(device: str, share: float) -> None:
    """Limit this process to a share of the GPU's memory, 0 to 1, for as long as it lives. Does nothing on a CPU.

    `free_bytes` plans with the share, and torch raises an out-of-memory error beyond it. The share bounds tensors and torch's
    cache. The CUDA context (some hundred MB) comes on top.
    """
    if not device.startswith("cuda"):
        return
    if not 0 < share <= 1:
        raise ValueError(f"the share of {device} must be above 0 and at most 1, not {share}")
    index = _index(device)
    torch.cuda.set_per_process_memory_fraction(float(share), index)
    _shares[index] = float(share)


def _index(device: str) -> int:
    index = torch.device(device).index
    return int(torch.cuda.current_device()) if index is None else index


def free_bytes(device: str) -> int:
    """What may be taken on the device beyond what this process already has, within its share (`hold_to_share`)."""
    if device.startswith("cuda"):
        index = _index(device)
        free, total = torch.cuda.mem_get_info(index)
        held = torch.cuda.memory_allocated(index)
        unused = torch.cuda.memory_reserved(index) - held
        own = _shares.get(index, 1.0) * total - held
        return max(0, int(_SHARE_OF_FREE * min(free + unused, own)))
    return int(_SHARE_OF_FREE * min(_machine_free(), _group_free()))


def _machine_free() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _group_free() -> int:
    """What a container's limit leaves; a very large number where there is none."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
        return 2**62 if limit == "max" else max(0, int(limit) - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        return 2**62
