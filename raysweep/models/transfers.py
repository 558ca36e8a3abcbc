"""Copies between host and device that keep the host from waiting for the device.

A plain copy in either direction makes the host wait until the device has done everything it was asked for. Then it stands idle
until the host has prepared its next kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on the device, without waiting: what goes to a CUDA device goes through pinned memory.

    torch reuses the pinned memory only after the copy.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of one dtype on the CPU, brought there in one copy, so that the host waits once."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return list(tensors)
    device = tensors[0].device
    flat = torch.cat([tensor.detach().to(device).reshape(-1) for tensor in tensors]).cpu()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
