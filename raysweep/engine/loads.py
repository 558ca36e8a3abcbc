"""What a worker has loaded on its way through calls, and what it reads for the next: residents.py on paper. Bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from raysweep.engine.calls import ModelCall, PairCall, TrainCall
from raysweep.engine.memory import is_training
from raysweep.models.sizes import SIZES, layer_sizes, pinned_bytes, slot_bytes
from raysweep.models.skeleton import Reads, read_sizes

if TYPE_CHECKING:
    from raysweep.models.checkpoint import Checkpoint


class Loads:
    """The checkpoints that one worker has, at most so many `resident`: the least recently used one makes room."""

    def __init__(self, resident: int) -> None:
        self._resident = resident
        self._loaded: OrderedDict[tuple[str, str, str], int] = OrderedDict()
        self._pinned: dict[tuple[str, str, str], int] = {}
        self._reads: dict[str, Reads] = {}

    @property
    def held(self) -> int:
        """Bytes of memory that what is loaded takes."""
        return sum(self._loaded.values())

    @property
    def pinned(self) -> int:
        """Bytes of pinned memory on the host that what is loaded takes: the slots of streamed checkpoints on a GPU."""
        return sum(self._pinned.get(key, 0) for key in self._loaded)

    def reads(self, checkpoint: Checkpoint) -> Reads:
        """What streaming reads of the checkpoint; found once."""
        if checkpoint.fingerprint not in self._reads:
            self._reads[checkpoint.fingerprint] = read_sizes(checkpoint)
        return self._reads[checkpoint.fingerprint]

    def size(self, call: ModelCall, checkpoint: Checkpoint, base: Checkpoint | None = None) -> int:
        """Bytes that are read to have a checkpoint of the call; streamed, what is outside its layers."""
        if call.loading.stream:
            return self.reads(checkpoint).rest
        return checkpoint.bytes + (base.bytes if base and checkpoint.adapter else 0)

    def of(self, call: ModelCall) -> int:
        """Bytes read before the call begins, for what it needs and is not there; then it is. A training has nothing beside it."""
        if isinstance(call, PairCall):
            return self._load_pair(call)
        if not isinstance(call, TrainCall):
            return self._load(call, call.base)
        if is_training(call):
            self._loaded.clear()
            return call.base.bytes
        resident = replace(call, loading=replace(call.loading, stream=False))
        return self._load(resident, call.base) if call.made is None else self._load(resident, call.made, call.base)

    def _load_pair(self, call: PairCall) -> int:
        """Bytes read to have both; what is there of them does not make room for the other."""
        for key in [key for key in self._loaded if key[0] in call.affinity]:
            self._loaded.move_to_end(key)
        return self._load(call, call.base) + self._load(call, call.tuned, call.base)

    def _load(self, call: ModelCall, checkpoint: Checkpoint, base: Checkpoint | None = None) -> int:
        loading = call.loading
        state = "stream" if loading.stream else base.fingerprint if base and checkpoint.adapter else ""
        key = (checkpoint.fingerprint, state, loading.dtype)
        read = 0
        if key not in self._loaded:
            while len(self._loaded) >= self._resident:
                self._loaded.popitem(last=False)
            if loading.stream:
                layer, rest = layer_sizes(checkpoint, loading.dtype)
                self._loaded[key] = 2 * layer + rest
                if loading.device.startswith("cuda"):
                    self._pinned[key] = 2 * pinned_bytes(slot_bytes(checkpoint, loading.dtype))
            else:
                whole = [checkpoint] if base is None or not checkpoint.adapter else [checkpoint, base]
                self._loaded[key] = sum(one.n_parameters for one in whole) * SIZES[loading.dtype]
            read = self.size(call, checkpoint, base)
        self._loaded.move_to_end(key)
        return read
