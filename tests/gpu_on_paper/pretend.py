"""A GPU on paper: tensors that claim to be on `cuda:N` and hold their data on the CPU.

What CUDA refuses, they refuse (devices that mix). What makes the host wait for the device is counted, with the line that made
it. Memory is counted as an allocator would, without its rounding, and can be made to run out. Copies on side streams are
streams.py's.

What it cannot show: kernels' own arithmetic, speed, fragmentation of memory, and what libraries do inside a call.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import raysweep

aten = torch.ops.aten
OURS = str(Path(raysweep.__file__).parent) + "/"
HERE = str(Path(__file__).parent) + "/"
THEIRS = ("/transformers/", "/accelerate/")  # whose lines may make the host wait, too


class MixedDevicesError(RuntimeError):
    """What CUDA raises as a RuntimeError of its own."""


class Allocation:
    """The memory of one storage on the pretended device; it is given back when no tensor has it any more."""

    def __init__(self, machine: Machine, device: int, size: int) -> None:
        self.machine, self.device, self.size = machine, device, size
        self.used = 0  # at which operation of the main stream, last
        machine.allocate(device, size)

    def __del__(self) -> None:
        self.machine.live[self.device] -= self.size


class Machine:
    """The pretended GPUs of one test: their memory, and what the host did to wait for them.

    `waits` counts by (kind, line), where the line is the innermost one of raysweep's or of the libraries that call blocks.
    """

    def __init__(self, gpus: int = 1, memory: int = 2**34) -> None:
        self.gpus, self.memory = gpus, memory
        self.live: Counter[int] = Counter()
        self.peak: Counter[int] = Counter()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.allocations = 0
        self.fail_at: int | None = None  # the allocation that runs out of memory
        self.break_at: int | None = None  # the operation from which on the context is dead: every one raises
        self.current = 0
        self.known: weakref.WeakValueDictionary[int, Allocation] = weakref.WeakValueDictionary()
        self.pinned: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.copy: Callable[[torch.Tensor, torch.Tensor, bool], bool] | None = None  # streams.py's
        self.is_main: Callable[[], bool] = lambda: True  # whether the current stream is the main one
        self.operations = 0
        self.lock = threading.RLock()

    def wait(self, kind: str, size: int = 0) -> None:
        """Note that the host waits for the device."""
        self.waits[kind, line()] += 1
        self.bytes[kind] += size

    def n_waits(self, *, ours: bool = False) -> int:
        """How often the host waited, everywhere or because of raysweep's own lines."""
        return sum(n for (_, at), n in self.waits.items() if not ours or at.startswith("raysweep/"))

    def forget(self) -> None:
        """Count anew."""
        self.waits.clear()
        self.bytes.clear()
        self.calls.clear()
        self.allocations = 0
        self.peak = Counter(self.live)

    def allocate(self, device: int, size: int) -> None:
        """Take memory, or run out of it."""
        self.allocations += 1
        if self.allocations == self.fail_at or self.live[device] + size > self.memory:
            self.live[device] += size  # which the allocation gives back
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size} bytes. GPU {device} has {self.memory} bytes in all"
            )
        self.live[device] += size
        self.peak[device] = max(self.peak[device], self.live[device])

    def check(self) -> None:
        """Raise what a dead context raises."""
        if self.break_at is not None and self.operations >= self.break_at:
            raise torch.AcceleratorError(
                "CUDA error: an illegal memory access was encountered\n"
                "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
                "incorrect."
            )

    def taken(self, held: torch.Tensor, device: int) -> Allocation | None:
        """The allocation of a tensor's storage, which views share."""
        storage = held.untyped_storage()
        if not storage.nbytes():
            return None
        with self.lock:
            found = self.known.get(storage.data_ptr())
            if found is None:
                found = Allocation(self, device, storage.nbytes())
                self.known[storage.data_ptr()] = found
            return found

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether a CPU tensor lies in pinned memory."""
        return tensor.untyped_storage() in self.pinned


def line() -> str:
    """The innermost line of raysweep's, or of a library that calls blocks, that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(OURS):
            return f"raysweep/{name.removeprefix(OURS)}:{frame.f_lineno}"
        for theirs in THEIRS:
            if theirs in name:
                return f"{theirs[1:]}{name.partition(theirs)[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


MACHINE: Machine | None = None


def machine() -> Machine:
    assert MACHINE is not None, "there is no pretended GPU"
    return MACHINE


class OnGpu(torch.Tensor):
    """A tensor that claims to be on a CUDA device; `held` has its data."""

    held: torch.Tensor
    memory: Allocation | None

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> OnGpu:
        made: OnGpu = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=device,
        )
        made.held = held
        made.memory = machine().taken(held, device.index)
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch decides above its operations, and what it does without one."""
        kwargs = kwargs or {}
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            return _indexed(func, *args)
        if func is torch.Tensor.copy_:
            return run(aten.copy_.default, args, kwargs)
        if func is scaled_dot_product_attention:
            return _attend(args, kwargs)
        if func is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        try:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        except RuntimeError as error:
            if "not linked with support for cuda" not in str(error):
                raise
            return run(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({list(self.shape)}, {self.dtype}, {self.device})"

    def __deepcopy__(self, memo: Any) -> OnGpu:
        return OnGpu(self.held.clone(), self.device)

    def data_ptr(self) -> int:
        return self.held.data_ptr()


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same lists, tuples and mappings with every other value changed; torch's own for any tree takes thrice as long."""
    if type(value) in (list, tuple):
        return type(value)(_mapped(change, each) for each in value)
    if type(value) is dict:
        return {key: _mapped(change, each) for key, each in value.items()}
    return change(value)


def _tensors(value: Any, found: list[torch.Tensor]) -> list[torch.Tensor]:
    """All tensors in lists, tuples and mappings."""
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, list | tuple):
        for each in value:
            _tensors(each, found)
    elif isinstance(value, dict):
        for each in value.values():
            _tensors(each, found)
    return found


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGpu) else value


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _gpu(device: Any) -> torch.device | None:
    """The CUDA device that is meant; None for the CPU."""
    if device is None:
        return None
    device = torch.device(device)
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else None


# Operations that hand their tensors' values to the host, which waits for them.
_READS = {
    aten._local_scalar_dense.default: "a value is read",
    aten.equal.default: "tensors are compared",
    aten.is_nonzero.default: "a value is read",
    aten.nonzero.default: "places are counted",
    aten.masked_select.default: "places are counted",
    aten.bincount.default: "counts are sized",
    aten._unique2.default: "values are counted",
    aten.unique_consecutive.default: "values are counted",
    aten.unique_dim.default: "values are counted",
    aten.repeat_interleave.Tensor: "repeats are summed",
}
_WHERE = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


def _same_device(func: Any, tensors: list[torch.Tensor]) -> torch.device | None:
    """The one device of all tensors; a single value may come from the CPU."""
    gpus = {t.device for t in tensors if isinstance(t, OnGpu)}
    others = [t for t in tensors if not isinstance(t, OnGpu) and t.ndim > 0 and t.device.type == "cpu"]
    if len(gpus) > 1 or (gpus and others):
        found = [*sorted(map(str, gpus)), *[f"{list(t.shape)} on the CPU" for t in others]]
        raise MixedDevicesError(f"{func} mixes {', '.join(found)}, at {line()}")
    return next(iter(gpus), None)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation in which a pretended tensor takes part, or which makes one."""
    at = machine()
    at.check()
    tensors = _tensors((args, kwargs), [])
    at.operations += 1
    for tensor in tensors if at.is_main() else ():
        if isinstance(tensor, OnGpu) and tensor.memory is not None:
            tensor.memory.used = at.operations
    if func is aten._to_copy.default:
        return _to(args[0], kwargs)
    if func is aten.copy_.default:
        return _copy(args[0], args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if func in _READS and any(isinstance(t, OnGpu) for t in tensors):
        at.wait(_READS[func])
    if func in _WHERE and any(isinstance(i, OnGpu) and i.dtype in (torch.bool, torch.uint8) for i in args[1]):
        at.wait("places are counted")
    device = _gpu(kwargs["device"]) if kwargs.get("device") is not None else _same_device(func, tensors)
    kwargs = _mapped(_held, {name: value for name, value in kwargs.items() if name != "pin_memory"})
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    args = _mapped(_held, args)
    if func is aten.histc.default and device is not None:  # of whole numbers on a GPU alone
        out = func(args[0].double(), *args[1:], **kwargs).to(args[0].dtype)
    else:
        out = func(*args, **kwargs)
    if device is None:
        return out
    given = {id(t.held): t for t in tensors if isinstance(t, OnGpu)}  # what an operation changes in place it gives back

    def on_device(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, OnGpu):
            return value
        return given[id(value)] if id(value) in given else OnGpu(value, device)

    return _mapped(on_device, out)


def _to(source: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    """`to`, `cpu`, `cuda`, `float` and so on, where a copy has to be made."""
    at, quick = machine(), kwargs.get("non_blocking", False)
    device = _gpu(kwargs["device"]) if kwargs.get("device") is not None else _gpu(source.device)
    casts = {name: kwargs[name] for name in ("dtype", "layout", "memory_format") if name in kwargs}
    out = aten._to_copy.default(_held(source), **casts)
    if isinstance(source, OnGpu) and device is None and quick and at.copy is not None:
        return _arriving(out, source, at.copy)
    if isinstance(source, OnGpu) and device is None:
        at.wait("copied to the host", _size(source))
    elif device is not None and not isinstance(source, OnGpu) and not (quick and at.is_pinned(source)):
        at.wait("copied to the device", _size(source))
    return out if device is None else OnGpu(out, device)


def _arriving(
    out: torch.Tensor, source: OnGpu, copy: Callable[[torch.Tensor, torch.Tensor, bool], bool]
) -> torch.Tensor:
    """A tensor in pinned memory that has its values once the host has waited for the stream."""
    there = torch.empty_like(out).fill_(float("nan") if out.dtype.is_floating_point else 0)
    machine().pinned.add(there.untyped_storage())
    copy(there, OnGpu(out, source.device), True)
    return there


def _copy(target: torch.Tensor, source: torch.Tensor, quick: bool) -> torch.Tensor:
    """`copy_`, over devices too."""
    at = machine()
    if at.copy is not None and at.copy(target, source, quick):
        return target
    if isinstance(target, OnGpu) != isinstance(source, OnGpu) and (source.ndim or not isinstance(target, OnGpu)):
        host = source if isinstance(target, OnGpu) else target
        if not (quick and at.is_pinned(host)):
            at.wait("copied to the device" if isinstance(target, OnGpu) else "copied to the host", _size(source))
    _held(target).copy_(_held(source))
    return target


class _Operations(TorchDispatchMode):
    """Operations that make tensors on a pretended device from none, and all others on such tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(t, OnGpu) for t in _tensors((args, kwargs), [])) or _gpu(kwargs.get("device")) is not None:
            return run(func, args, kwargs)
        if kwargs.pop("pin_memory", False):
            out = func(*args, **kwargs)
            machine().pinned.add(out.untyped_storage())
            return out
        return func(*args, **kwargs)


class _Functions(TorchFunctionMode):
    """Which device `cuda` is, and tensors that are made or pinned without one on a device taking part."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        args, kwargs = _mapped(_numbered, (args, kwargs or {}))
        if func is torch.device and isinstance(args[0], int):
            return torch.device("cuda", args[0])
        if name == "to" and len(args) > 1 and isinstance(args[1], int):
            args = (args[0], torch.device("cuda", args[1]), *args[2:])
        if isinstance(kwargs.get("device"), int):
            kwargs["device"] = torch.device("cuda", kwargs["device"])
        if name == "cuda" and args:
            return args[0].to(torch.device("cuda", machine().current))
        if name in ("is_pinned", "pin_memory") and not isinstance(args[0], OnGpu):
            if name == "is_pinned":
                return machine().is_pinned(args[0])
            out = args[0].clone()
            machine().pinned.add(out.untyped_storage())
            return out
        if func is torch.tensor and _gpu(kwargs.get("device")) is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


def _attend(args: Any, kwargs: Any) -> Any:
    """Attention by the CPU's kernel: torch chooses one by the device before any operation."""
    machine().calls["attention"] += 1
    device = _same_device(scaled_dot_product_attention, _tensors((args, kwargs), []))
    args, kwargs = _mapped(_held, (args, kwargs))
    assert device is not None
    return OnGpu(scaled_dot_product_attention(*args, **kwargs), device)


def _indexed(func: Any, tensor: torch.Tensor, index: Any, *value: Any) -> Any:
    """`tensor[index]`, and `tensor[index] = value`."""
    at, parts = machine(), index if isinstance(index, tuple) else (index,)
    at.operations += 1
    at.check()
    if not isinstance(tensor, OnGpu):
        if any(isinstance(part, OnGpu) and part.ndim for part in (*parts, *value)):
            raise MixedDevicesError(f"a tensor on the CPU is indexed with one on a GPU, at {line()}")
        return func(tensor, index, *value)
    for part in parts:
        if isinstance(part, OnGpu):
            _same_device(func, [tensor, part])
            if part.dtype in (torch.bool, torch.uint8):
                at.wait("places are counted")
        elif isinstance(part, list | torch.Tensor) and not (isinstance(part, torch.Tensor) and part.ndim == 0):
            at.wait("copied to the device")
    index = tuple(map(_held, parts)) if isinstance(index, tuple) else _held(index)
    if not value:
        return OnGpu(tensor.held[index], tensor.device)
    if isinstance(value[0], torch.Tensor) and value[0].ndim and not isinstance(value[0], OnGpu):
        at.wait("copied to the device")
    tensor.held[index] = _held(value[0])
    return None


def _numbered(value: Any) -> Any:
    if (isinstance(value, str) and value == "cuda") or (
        isinstance(value, torch.device) and value.type == "cuda" and value.index is None
    ):
        return torch.device("cuda", machine().current)
    return value


def _index(device: Any = None) -> int:
    if device is None:
        return machine().current
    if isinstance(device, int):
        return device
    return torch.device(device).index or 0


def _set_device(device: Any) -> None:
    machine().current = _index(device)


@contextmanager
def _at_device(device: Any) -> Iterator[None]:
    before, machine().current = machine().current, _index(device)
    try:
        yield
    finally:
        machine().current = before


@contextmanager
def pretended(gpus: int = 1, memory: int = 2**34) -> Iterator[Machine]:
    """So many GPUs of so many bytes each, for this thread, and torch.cuda's functions that tell of them."""
    global MACHINE
    MACHINE = at = Machine(gpus, memory)
    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: gpus,
        "current_device": lambda: at.current,
        "set_device": _set_device,
        "device": _at_device,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: "GPU on paper",
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (memory - at.live[_index(device)], memory),
        "memory_allocated": lambda device=None: at.live[_index(device)],
        "memory_reserved": lambda device=None: at.live[_index(device)],
        "max_memory_allocated": lambda device=None: at.peak[_index(device)],
        "reset_peak_memory_stats": lambda device=None: at.peak.update(
            {_index(device): at.live[_index(device)] - at.peak[_index(device)]}
        ),
        "empty_cache": lambda: at.check(),
        "synchronize": lambda device=None: (at.check(), at.wait("synchronize"))[0],
        "manual_seed_all": lambda seed: None,
        "set_per_process_memory_fraction": lambda fraction, device=None: None,
    }
    with contextlib.ExitStack() as held:
        for name, value in cuda.items():
            held.enter_context(mock.patch.object(torch.cuda, name, value))
        held.enter_context(mock.patch.dict("os.environ", {"HF_DEACTIVATE_ASYNC_LOAD": "1"}))  # modes are a thread's own
        held.enter_context(_Functions())
        held.enter_context(_Operations())
        try:
            yield at
        finally:
            MACHINE = None


def to_gpu(model: torch.nn.Module, device: str = "cuda:0") -> torch.nn.Module:
    """Move a model, in place, as `model.to` would; what it keeps outside its parameters and buffers stays, as there."""
    there = torch.device(device)
    moved: dict[int, torch.nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                if id(value) not in moved:
                    moved[id(value)] = torch.nn.Parameter(OnGpu(value.detach().clone(), there), requires_grad=False)
                module._parameters[name] = moved[id(value)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnGpu(buffer.detach().clone(), there)
    return model
