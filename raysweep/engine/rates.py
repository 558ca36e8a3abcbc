"""Rough clocks for plans, each a moment long: how fast this machine applies a model's layers and reads its checkpoint.

On a GPU they run where the workers are (measuring.py). Nothing of a model is loaded: the layer has the checkpoint's sizes and made-up weights. Rates are kept for as long as the
process lives.
"""

from __future__ import annotations

import math
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import InputError, shown
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.digest_cache import remembered, user_digest_cache
from raysweep.models.one_layer import build_one_layer
from raysweep.models.same import layer_of
from raysweep.models.sizes import hidden_size, vocabulary_size

if TYPE_CHECKING:
    from raysweep.engine.facts import ModelFacts

_SECONDS = 0.1
_LIVE_BYTES = 48 * 2**20  # more than a processor's caches hold, as the states of a sweep mostly are
_READ_BYTES = 64 * 2**20
_RATE_SECONDS = 86400.0  # for which a measured rate of reading is used again
_KNOWN: dict[tuple[object, ...], Rates] = {}


@dataclass(frozen=True)
class Rates:
    """Seconds of one decoder layer on one token, seconds of norm, head and loss on one token, and bytes read a second.

    `layer` tells what the first was taken from: a layer of the model's sizes, or a matrix product where none can be made.
    """

    layer_seconds: float
    head_seconds: float
    read_bytes: float
    layer: str

    def slower(self, run: float, load: float) -> Rates:
        """The same with everything computed so many times, and everything read so many times as slowly."""
        return replace(
            self,
            layer_seconds=self.layer_seconds * run,
            head_seconds=self.head_seconds * run,
            read_bytes=self.read_bytes / load,
        )

    def to_json(self) -> dict[str, float]:
        """Plain values, as `--rates` names them."""
        return {"layer": self.layer_seconds, "head": self.head_seconds, "read": self.read_bytes}


@dataclass(frozen=True)
class DeviceFigures:
    """A device's own figures: floating point operations and bytes read a second, from which any model's rates follow."""

    flops: float
    read_bytes: float

    def of(self, checkpoint: Checkpoint) -> Rates:
        """The rates of a model if each parameter of a layer, or of the head, is two operations on a token: attention's own
        products, what an expert that is not chosen saves, and anything but arithmetic are not in it."""
        head = 2.0 * hidden_size(checkpoint.config) * vocabulary_size(checkpoint.config)
        layer = 2.0 * layer_parameters(checkpoint)
        told = f"two operations per parameter at {self.flops:.3g} per second"
        return Rates(layer / self.flops, head / self.flops, self.read_bytes, told)


def given_rates(text: str) -> Rates | DeviceFigures:
    """Rates from `layer=1e-7,read=2e9,head=1e-6`: seconds a token, bytes a second, seconds a token (0 unless given); or a
    device's figures from `flops=4e14,read=2e9`, which fit models of unlike sizes.

    Raises InputError for anything else.
    """
    found: dict[str, float] = {}
    for item in text.split(","):
        name, _, value = item.strip().partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
    known = {"layer", "read"} <= found.keys() <= {"layer", "read", "head"} or found.keys() == {"flops", "read"}
    if not known or not all(0 < rate < math.inf or (name == "head" and rate == 0) for name, rate in found.items()):
        raise InputError(
            f"--rates {shown(text)} is not a run folder; give one, or layer=SECONDS,read=BYTES (seconds of a decoder "
            "layer per token, bytes read per second; optionally head=SECONDS, of norm, head and loss per token), or "
            "flops=OPERATIONS,read=BYTES (of a device, per second) for models of different sizes"
        )
    if "flops" in found:
        return DeviceFigures(found["flops"], found["read"])
    return Rates(found["layer"], found.get("head", 0.0), found["read"], "as given")


def slowest(found: Sequence[Rates]) -> Rates:
    """Return the slowest of each rate, for machines that differ; there must be one."""
    layer = max(found, key=lambda rates: rates.layer_seconds)
    head, read = max(rates.head_seconds for rates in found), min(rates.read_bytes for rates in found)
    return replace(layer, head_seconds=head, read_bytes=read)


# Where nothing can be timed: calls compare by the tokens that go through layers, and loads take no time.
NOMINAL = Rates(1e-6, 0.0, math.inf, "no timing")


@contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """So many threads for torch's products meanwhile, as a worker elsewhere has; as they are for None."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measured_rates(model: ModelFacts, device: str, tokens: int, length: int, memory: int | None = None) -> Rates | None:
    """Rates for calls of about `tokens` tokens in texts of `length`; None where the device or the checkpoint is not on
    this machine.

    Models of one architecture and the same sizes have the same. What was read may have been in the page cache: it mostly
    is, for inspection reads every checkpoint.
    """
    import torch

    if model.base.on_paper:  # there is no file to read
        return None
    if (device.startswith("cuda") and not torch.cuda.is_available()) or (
        device == "mps" and not torch.backends.mps.is_available()
    ):
        return None
    kind = (str(model.base.config.get("model_type")), frozenset(model.base.shapes.items()))
    key = (kind, model.dtype, device, tokens, length, torch.get_num_threads())
    if key not in _KNOWN:
        width = hidden_size(model.base.config)
        vocabulary = vocabulary_size(model.base.config) or 1
        try:
            layer = layer_rate(model.base, model.dtype, device, tokens, length, memory)
            told = "a layer of its sizes"
        except Exception:  # an architecture that does not come with one layer raises whatever it stumbled over
            parameters = layer_parameters(model.base)
            layer = 2.0 * parameters / matmul_rate(tokens, width, model.dtype, device)
            told = "a matrix product of its width"
        head = head_rate(min(tokens, 256), width, vocabulary, model.dtype, device)
        _KNOWN[key] = Rates(layer, head, read_rate(model.base, model.dtype), told)
    return _KNOWN[key]


def layer_parameters(checkpoint: Checkpoint) -> float:
    """Parameters of a decoder layer, the mean over all of them."""
    sizes = [math.prod(shape) for name, shape in checkpoint.shapes.items() if layer_of(name) is not None]
    return sum(sizes) / checkpoint.n_layers


def _timed(device: str, once: Callable[[], object], seconds: float) -> float:
    """Seconds of one call, the mean over about `seconds` of them, the first left out."""
    import torch

    def whole() -> None:
        once()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    whole()
    started, n = time.perf_counter(), 0
    while n == 0 or time.perf_counter() - started < seconds:
        whole()
        n += 1
    return (time.perf_counter() - started) / n


def layer_rate(
    checkpoint: Checkpoint, dtype: str, device: str, tokens: int, length: int, memory: int | None = None
) -> float:
    """Seconds a token of one decoder layer of the checkpoint's sizes, on about `tokens` tokens in texts of `length`.

    As in a sweep, the layer takes one state after the other and what it makes of them stays: small states that were always the
    same would be in the processor's cache, and their memory not asked for anew. Raises whatever the architecture does where a layer of it cannot be made by itself.
    """
    import torch

    from raysweep.models.adapter import apply_block

    adapter = build_one_layer(checkpoint, dtype, device, *([] if memory is None else [memory // 4]))
    rows = max(1, tokens // length)
    texts = torch.arange(rows * length).view(rows, length) % 97 + 3
    with torch.no_grad():
        recording = adapter.record(texts, [length] * rows)
        call, states = recording.calls[0], recording.states
        ring = max(1, _LIVE_BYTES // (states.numel() * states.element_size()))
        before, behind = cycle([states.clone() for _ in range(ring)]), deque[torch.Tensor](maxlen=ring)
        taken = _timed(
            device, lambda: behind.append(apply_block(adapter.blocks[0], next(before), call, {})), 2 * _SECONDS
        )
    return taken / (rows * length)


def head_rate(tokens: int, width: int, vocabulary: int, dtype: str, device: str) -> float:
    """Seconds a token of a head's product and the cross entropy of its logits."""
    import torch

    kind = getattr(torch, dtype)
    states = torch.full((tokens, width), 0.01, dtype=kind, device=device)
    head = torch.full((vocabulary, width), 0.01, dtype=kind, device=device)
    targets = torch.zeros(tokens, dtype=torch.int64, device=device)

    def once() -> object:
        logits = torch.nn.functional.linear(states, head)
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")

    return _timed(device, once, _SECONDS / 2) / tokens


def read_rate(checkpoint: Checkpoint, dtype: str) -> float:
    """Bytes a second of reading the checkpoint's own tensors into memory, converting and digesting as streaming does.

    A rate that this machine measured less than a day ago is used again, as long as the checkpoint has not changed.
    """
    from raysweep.models.weights import weight_files

    files = weight_files(checkpoint.folder, checkpoint.source)

    def measure() -> dict[str, float]:
        return {"rate": _measured_read_rate(checkpoint, dtype, files), "at": time.time()}

    def accept(value: dict[str, float]) -> float | None:
        return value["rate"] if abs(time.time() - value["at"]) < _RATE_SECONDS else None

    kind = f"rate of reading as {dtype} on {socket.gethostname()}"
    return remembered(user_digest_cache(), files[0], kind, measure, accept)


def _measured_read_rate(checkpoint: Checkpoint, dtype: str, files: Sequence[Path]) -> float:
    import torch

    from raysweep.models.reading import TensorFiles

    started, got = time.perf_counter(), 0
    if files[0].suffix != ".safetensors":
        with files[0].open("rb", buffering=0) as file:
            got = len(file.read(_READ_BYTES))
        return got / (time.perf_counter() - started)
    tensors = TensorFiles(files, checkpoint)
    kind = getattr(torch, dtype)
    started = time.perf_counter()
    try:
        for name, tensor in tensors.tensors.items():
            if got and tensors.bytes_read + tensor.stop - tensor.start > _READ_BYTES:
                continue
            try:
                target = torch.empty(tensor.shape, dtype=kind if tensors.dtype(name).is_floating_point else None)
                tensors.read_into(name, target)
            except Exception:  # what cannot be streamed says nothing of how fast the disk is
                continue
            got = tensors.bytes_read
        tensors.check()
    finally:
        tensors.close()
    return max(1, tensors.bytes_read) / (time.perf_counter() - started)


def matmul_rate(tokens: int, width: int, dtype: str, device: str) -> float:
    """Floating point operations a second of [tokens, width] × [width, 4·width]."""
    import torch

    kind = getattr(torch, dtype)
    left = torch.ones(tokens, width, dtype=kind, device=device)
    right = torch.ones(width, 4 * width, dtype=kind, device=device)
    return 8.0 * tokens * width * width / _timed(device, lambda: torch.mm(left, right), _SECONDS)
