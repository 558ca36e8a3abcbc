"""What it costs that loading digests what it reads: seconds with and without, the sides in turn.

Resident: transformers' own loading from mapped files, and raysweep's. Streamed: all layers read once, without and with digests.
The files are in the page cache (warm), are dropped from it before each load (cold), or come at a fixed pace, which emulates
slower disks: there both sides read in the same way, one of them without digests. Needs 1 GB of disk and 5 GB of memory.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from common import in_turn, machine, spread
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from raysweep.models import digesting, lazy_tensors
from raysweep.models.checkpoint import Checkpoint, describe
from raysweep.models.loading import load_model
from raysweep.models.stream import StreamedModel

LAYERS = 20
CONFIG = {"hidden_size": 1536, "intermediate_size": 4096, "num_attention_heads": 12, "vocab_size": 16000}
PACES = (1.0, 0.5)  # GB/s
DTYPES = ("bfloat16", "float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["resident", "streamed"])
    asked = parser.parse_args()
    rounds = asked.rounds
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        LlamaForCausalLM(LlamaConfig(num_hidden_layers=LAYERS, **CONFIG)).bfloat16().save_pretrained(scratch)
        checkpoint = describe(scratch)
        print(f"{checkpoint.bytes / 1e9:.2f} GB of bfloat16 in {len(checkpoint.shapes)} tensors")
        if asked.only != "streamed":
            measure_resident(checkpoint, rounds)
        if asked.only != "resident":
            measure_streamed(checkpoint, rounds)
    print(machine())


def measure_resident(checkpoint: Checkpoint, rounds: int) -> None:
    for dtype in DTYPES:
        for pace in PACES:
            with paced(pace):
                digested = partial(load_model, checkpoint, dtype=dtype)
                told(f"resident in {dtype}, {pace} GB/s", checkpoint, rounds, without_digests(digested), digested)
        for cache in ("cold", "warm"):
            told(f"resident in {dtype}, {cache}", checkpoint, rounds, *resident(checkpoint, dtype, cache == "cold"))


def measure_streamed(checkpoint: Checkpoint, rounds: int) -> None:
    plain = replace(checkpoint, digests={}, files={})
    for dtype in DTYPES:
        for pace in PACES:
            with paced(pace):
                sides = [streamed(each, dtype, cold=False) for each in (plain, checkpoint)]
                told(f"streamed in {dtype}, {pace} GB/s", checkpoint, rounds, *sides)
        for cache in ("cold", "warm"):
            sides = [streamed(each, dtype, cache == "cold") for each in (plain, checkpoint)]
            told(f"streamed in {dtype}, {cache}", checkpoint, rounds, *sides)


def told(
    what: str, checkpoint: Checkpoint, rounds: int, without: Callable[[], Any], with_digests: Callable[[], Any]
) -> None:
    """Time both sides and print them."""
    before, after = in_turn(rounds, without, with_digests)
    gigabytes = checkpoint.bytes / 1e9
    print(f"{what}")
    print(f"  without  {spread(before)} s, {gigabytes / min(before):.2f} GB/s at best")
    print(f"  digested {spread(after)} s, {gigabytes / min(after):.2f} GB/s at best")
    print(f"  of the time, round by round: {spread([b / a for a, b in zip(before, after, strict=True)])}")


def resident(checkpoint: Checkpoint, dtype: str, cold: bool) -> list[Callable[[], Any]]:
    """Loading by transformers alone, and by raysweep; what is mapped is read as well, once."""

    def alone() -> None:
        forget(checkpoint, cold)
        model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=getattr(torch, dtype))
        for parameter in model.parameters():
            parameter.view(-1)[:: 4096 // parameter.itemsize].max()

    def own() -> None:
        forget(checkpoint, cold)
        load_model(checkpoint, dtype=dtype)

    return [alone, own]


def streamed(checkpoint: Checkpoint, dtype: str, cold: bool) -> Callable[[], None]:
    """All layers in order, once, with nothing computed."""
    model = StreamedModel(checkpoint, dtype=dtype)

    def read() -> None:
        forget(checkpoint, cold)
        for _ in model.layers():
            pass

    return read


def forget(checkpoint: Checkpoint, cold: bool) -> None:
    """Drop the checkpoint's files from the page cache."""
    for path in checkpoint.folder.glob("*.safetensors") if cold else ():
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


class Nothing:
    """A digest that costs nothing."""

    def update(self, data: object) -> None:
        """Do nothing."""

    def hexdigest(self) -> str:
        """Of nothing."""
        return ""


def without_digests(load: Callable[[], Any]) -> Callable[[], Any]:
    """The same reads with nothing digested or compared."""

    def plain() -> None:
        with (
            patch.object(lazy_tensors, "tensor_digest", lambda *_: Nothing()),
            patch.object(lazy_tensors, "compare_digests", lambda *_: None),
        ):
            load()

    return plain


@contextlib.contextmanager
def paced(gigabytes: float) -> Iterator[None]:
    """All reads together come no faster than this a second, whatever the cache has."""
    lock, free = threading.Lock(), [0.0]
    read = digesting.os.preadv

    class Paced:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        @staticmethod
        def preadv(handle: int, buffers: list[memoryview], place: int) -> int:
            got = int(read(handle, buffers, place))
            with lock:
                now = time.perf_counter()
                free[0] = max(free[0], now - 0.004) + got / (gigabytes * 1e9)
                until = free[0]
            time.sleep(max(0.0, until - time.perf_counter()))
            return got

    with patch.object(digesting, "os", Paced()):
        yield


if __name__ == "__main__":
    main()
