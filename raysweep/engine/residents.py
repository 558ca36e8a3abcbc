"""The checkpoints that a worker has loaded: at most so many, the one used longest ago making room."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.engine.calls import Loading, PairCall
from raysweep.engine.memory import does_not_fit
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.loading import load_model
from raysweep.models.machine_errors import is_out_of_memory
from raysweep.models.release import Watched, free_memory
from raysweep.models.stream import StreamedModel
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_Key = tuple[str, str, str]


class Residents:
    """Models by checkpoint and dtype, at most `most` of them, and what having them has taken since `begin`.

    `planned` completes a checkpoint with digests that its plan does not have (kept.py).
    """

    def __init__(self, most: int, planned: Callable[[Checkpoint], Checkpoint] = lambda checkpoint: checkpoint) -> None:
        self._most = most
        self._planned = planned
        self._models: OrderedDict[_Key, Adapter | StreamedModel] = OrderedDict()
        self._last: tuple[tuple[object, object], Pair] | None = None
        self._read_before = 0  # bytes: of checkpoints that were loaded whole, and of streamed ones let go
        self.begin()

    def begin(self) -> None:
        """Count anew."""
        self._loads, self._evictions, self._load_seconds, self._read_at = 0, 0, 0.0, self._bytes_read()

    @property
    def counted(self) -> dict[str, Any]:
        """Loads, evictions and seconds that loads took."""
        return {"loads": self._loads, "evictions": self._evictions, "load_seconds": round(self._load_seconds, 4)}

    @property
    def bytes_read(self) -> int:
        """Bytes of checkpoints read; of one that is loaded whole, its files'."""
        return self._bytes_read() - self._read_at

    def adapter(self, checkpoint: Checkpoint, loading: Loading, base: Checkpoint | None = None) -> Adapter:
        """The loaded model; `base` is what an adapter's checkpoint is laid over."""
        key = (checkpoint.fingerprint, base.fingerprint if base and checkpoint.adapter else "", loading.dtype)
        found = self._models.get(key)
        if not isinstance(found, Adapter):
            with self._loading(checkpoint, loading):
                found = Adapter(
                    load_model(
                        self._planned(checkpoint),
                        dtype=loading.dtype,
                        device=loading.device,
                        device_map=loading.device_map,
                        base=base,
                    )
                )
            self._models[key] = found
            self._read_before += checkpoint.bytes + (base.bytes if base and checkpoint.adapter else 0)
        self._models.move_to_end(key)
        return found

    def streamed(self, checkpoint: Checkpoint, loading: Loading) -> StreamedModel:
        """The checkpoint with its layers on disk."""
        key = (checkpoint.fingerprint, "stream", loading.dtype)
        found = self._models.get(key)
        if not isinstance(found, StreamedModel):
            with self._loading(checkpoint, loading):
                found = StreamedModel(self._planned(checkpoint), dtype=loading.dtype, device=loading.device)
            self._models[key] = found
        self._models.move_to_end(key)
        return found

    def pair(self, call: PairCall) -> Pair:
        """The call's pair; the last one again while its models are, for it has found out what they have in common."""
        self._touch(call.affinity)
        if call.loading.stream:
            sources = self.streamed(call.base, call.loading), self.streamed(call.tuned, call.loading)
            spill = Path(call.loading.spill) if call.loading.spill is not None else None
            return self._kept(sources, lambda: StreamedPair.of(*sources, call.loading.memory, spill))
        models = self.adapter(call.base, call.loading), self.adapter(call.tuned, call.loading, base=call.base)
        return self._kept(models, lambda: Pair(*models))

    def _touch(self, needed: Collection[str]) -> None:
        """Take these checkpoints, as far as they are loaded, for those used last: none of a pair makes room for the other."""
        for key in [key for key in self._models if key[0] in needed]:
            self._models.move_to_end(key)

    def keep_only(self, needed: Collection[str]) -> bool:
        """Let go of all checkpoints but those with these fingerprints; whether there were any."""
        others = [key for key in self._models if key[0] not in needed]
        self._evict(others)
        return bool(others)

    def clear(self) -> None:
        """Let go of all models."""
        self._drop(list(self._models))

    def _bytes_read(self) -> int:
        streamed = [model for model in self._models.values() if isinstance(model, StreamedModel)]
        return self._read_before + sum(model.files.bytes_read for model in streamed)

    @contextmanager
    def _loading(self, checkpoint: Checkpoint, loading: Loading) -> Iterator[None]:
        """Make room for a model, and count its load. Raises DoesNotFitError where memory runs out."""
        started = time.monotonic()
        self._evict(list(self._models)[: max(0, len(self._models) + 1 - self._most)])
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                raise does_not_fit(checkpoint.source, loading, error) from error
            raise
        self._loads += 1
        self._load_seconds += time.monotonic() - started

    def _evict(self, keys: list[_Key]) -> None:
        self._evictions += len(keys)
        self._drop(keys)

    def _drop(self, keys: list[_Key]) -> None:
        """Let go of these models, and see to it that their memory is free: some are in reference cycles."""
        if not keys:
            return
        read = self._bytes_read()
        models = [self._models.pop(key) for key in keys]
        self._read_before += read - self._bytes_read()
        self._last = None  # it holds its models
        watched = Watched(map(_module, models))
        del models
        free_memory(collect=watched.is_alive)

    def _kept(self, models: tuple[object, object], make: Callable[[], Pair]) -> Pair:
        if self._last is None or self._last[0] != models:
            self._last = (models, make())
        return self._last[1]


def _module(model: Adapter | StreamedModel) -> PreTrainedModel:
    return model.adapter.model if isinstance(model, StreamedModel) else model.model
