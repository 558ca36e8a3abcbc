"""Streamed sweeps: bytes read per pass, several readers against one, time against the resident sweep, states on disk, memory over depth, a pair larger than its budget.

`--only bytes|readers|time|spill|memory|large` runs one part; all of them need 9 GB of disk for checkpoints, which are removed again, and
11 GB of memory for the resident sweep of the large pair. Memory is private memory (/proc/self/status, anonymous
pages: mapped and cached files do not count), sampled fifty times a second in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from common import in_turn, machine, spread
from transformers import LlamaConfig, LlamaForCausalLM

from raysweep.data.examples import Example
from raysweep.engine.room import Needs, sweep_batches
from raysweep.models import reading
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model
from raysweep.models.memory import private_bytes
from raysweep.models.stream import StreamedModel
from raysweep.studies.capture import Collector, capture_states
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Pair, Work, sweep_losses
from raysweep.studies.windows import UNTOUCHED, Window, windows_of_widths

DEPTHS = (8, 32, 96)
LARGE_LAYERS, LARGE_WIDTH = 40, 2048
BUDGET = 1_500_000_000
ROUNDS = 5
PARTS = ("bytes", "readers", "time", "spill", "memory", "large")
PACE = 0.2e9  # bytes a second of one read at a time, on storage that serves several at once


def told(figure: float, limit: float) -> str:
    """A limit, and whether the figure keeps it."""
    return f"limit {limit:g}: {'kept' if figure <= limit else 'MISSED'}"


def make_pair(folder: Path, layers: int, width: int, dtype: torch.dtype = torch.float32) -> None:
    """Two random Llamas of the width on disk."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        vocab_size=1000,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        dtype=dtype,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / "base", max_shard_size="500MB")
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.01)
    model.save_pretrained(folder / "tuned", max_shard_size="500MB")


def examples(n: int, tokens: int) -> list[Example]:
    """Random texts, the second half of each the response."""
    rng = np.random.default_rng(0)
    return [Example(i, rng.integers(0, 1000, tokens), tokens // 2, "", "") for i in range(n)]


def streamed(folder: Path, memory: int | None = None, dtype: str = "float32") -> StreamedPair:
    base, tuned = (StreamedModel(describe(str(folder / name)), dtype=dtype) for name in ("base", "tuned"))
    return StreamedPair.of(base, tuned, memory)


def resident(folder: Path, dtype: str = "float32") -> Pair:
    return Pair(*(Adapter(load_model(describe(str(folder / name)), dtype=dtype)) for name in ("base", "tuned")))


def few_windows(layers: int) -> list[Window]:
    """The same number of windows whatever the depth, so that as many states are in memory."""
    return [UNTOUCHED, *(Window(start, start + 2) for start in range(0, 6, 2)), Window(0, layers)]


class Peak:
    """The greatest private memory while it lasts."""

    def __enter__(self) -> Peak:
        self.bytes, self._over = private_bytes(), threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._over.wait(0.02):
            self.bytes = max(self.bytes, private_bytes())

    def __exit__(self, *args: object) -> None:
        self._over.set()
        self._thread.join()


def bytes_and_time(folder: Path, parts: set[str]) -> None:
    windows, texts = windows_of_widths(24, [5]), examples(8, 64)
    pair = streamed(folder)
    if "bytes" in parts:
        needed = sum(source.decoder_bytes for source in pair.sources)
        alone = capture_states(pair.base, texts, batch_tokens=1024, layers=pair.sources[0].layers)
        for what, collector in (
            ("the sweep", None),
            ("the sweep and the base's activations", Collector(pair.base, texts, "last", 1024)),
        ):
            before = pair.bytes_read
            sweep_losses(pair, texts, windows, batch_tokens=1024, collector=collector)
            ratio = (pair.bytes_read - before) / needed
            print(f"decoder bytes read / bytes in both checkpoints, one pass, {what}: {ratio:.4f} ({told(ratio, 1.0)})")
            if collector is not None:
                apart = float((collector.captured().states - alone.states).abs().max())
                print(f"  activations apart from those captured alone by {apart:.1e}", flush=True)
    if "time" in parts:
        whole = resident(folder)
        found: dict[str, np.ndarray] = {}
        for budget in (512, 256):

            def one(budget: int = budget) -> None:
                found["streamed"] = sweep_losses(pair, texts, windows, batch_tokens=budget)

            def other(budget: int = budget) -> None:
                found["resident"] = sweep_losses(whole, texts, windows, batch_tokens=budget)

            ours, theirs = in_turn(ROUNDS, one, other)
            apart = abs(found["streamed"] - found["resident"]).max()
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            print(
                f"streamed / resident time, batches of {budget}: {spread(ratios)} ({told(statistics.median(ratios), 1.25)}); "
                f"losses apart by {apart:.1e}",
                flush=True,
            )


def readers(folder: Path) -> None:
    """All layers read once by one thread and by several, nothing computed: page cache warm, and at a fixed pace for each reader."""
    model, several, read = StreamedModel(describe(str(folder / "base"))), reading.READERS, os.preadv
    cpu: dict[int, float] = {}

    def layers(threads: int) -> None:
        started = time.process_time()
        with patch.object(reading, "READERS", threads):
            for _ in model.layers():
                pass
        cpu[threads] = time.process_time() - started

    def paced(handle: int, buffers: list[memoryview], place: int) -> int:
        due = time.perf_counter() + sum(map(len, buffers)) / PACE
        got = read(handle, buffers, place)
        time.sleep(max(0.0, due - time.perf_counter()))
        return got

    for what, used in (("page cache warm", read), (f"{PACE / 1e9} GB/s for each reader", paced)):
        with patch.object(os, "preadv", used):
            one, more = in_turn(ROUNDS, lambda: layers(1), lambda: layers(several))
        rates = [model.decoder_bytes / 1e9 / statistics.median(each) for each in (one, more)]
        ratios = [b / a for a, b in zip(one, more, strict=True)]
        print(
            f"reading layers with digests, {what}: 1 reader {rates[0]:.2f} GB/s, {several} readers {rates[1]:.2f} GB/s; time "
            f"{several} / 1: {spread(ratios)}; CPU time {cpu[1]:.2f} and {cpu[several]:.2f} s",
            flush=True,
        )


def states_on_disk(folder: Path, scratch: Path) -> None:
    """A budget that holds two batches' states: passes over the weights against states that wait on disk."""
    layers, texts, batch_tokens = describe(str(folder / "base")).n_layers, examples(64, 17), 128
    windows = few_windows(layers)
    pair = streamed(folder)
    base = pair.sources[0].checkpoint
    needs = Needs.of(base, "float32", sweep_batches(base, texts, batch_tokens), windows)
    room = needs.at_work + 5 * max(need.states + need.fixed for need in needs.batches) // 2
    losses: dict[str, np.ndarray] = {}
    told: dict[str, str] = {}

    def sweep(what: str) -> None:
        work, before = Work(), pair.bytes_read
        bounded = replace(pair, memory=private_bytes() + room, folder=scratch if what == "on disk" else None)
        losses[what] = sweep_losses(bounded, texts, windows, batch_tokens=batch_tokens, work=work)
        told[what] = (
            f"{(pair.bytes_read - before) / 1e9:.2f} GB of weights read, {work.bytes_on_disk / 1e9:.2f} GB of states written"
        )

    ours, theirs = in_turn(ROUNDS, lambda: sweep("on disk"), lambda: sweep("in passes"))
    for what in losses:
        print(f"a budget for the states of 2 batches of 8, states {what}: {told[what]}")
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    apart = abs(losses["on disk"] - losses["in passes"]).max()
    print(f"  time on disk / in passes, page cache warm: {spread(ratios)}; losses apart by {apart:.1e}", flush=True)


def child(folder: Path, memory: int | None, dtype: str, n: int, mode: str) -> dict[str, Any]:
    """One sweep in a process of its own: its peak private memory and its losses."""
    command = [sys.executable, __file__, "--child", str(folder), "--dtype", dtype, "--texts", str(n), "--mode", mode]
    out = subprocess.run([*command, "--budget", str(memory or 0)], check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def run_child(folder: Path, memory: int, dtype: str, n: int, mode: str) -> None:
    layers = describe(str(folder / "base")).n_layers
    before, started = private_bytes(), time.perf_counter()
    with Peak() as peak:
        pair = streamed(folder, memory or None, dtype) if mode == "stream" else resident(folder, dtype)
        losses = sweep_losses(pair, examples(n, 64), few_windows(layers), batch_tokens=512)
    print(
        json.dumps(
            {"peak": peak.bytes, "before": before, "losses": losses.tolist(), "seconds": time.perf_counter() - started}
        )
    )


def memory_over_depth(folder: Path) -> None:
    peaks: dict[int, float] = {}
    befores: dict[int, float] = {}
    for layers in DEPTHS:
        make_pair(folder / str(layers), layers, 256)
        found = [child(folder / str(layers), None, "float32", 16, "stream") for _ in range(3)]
        peaks[layers], befores[layers] = (statistics.median(one[key] for one in found) for key in ("peak", "before"))
        shutil.rmtree(folder / str(layers))
    first, last = DEPTHS[0], DEPTHS[-1]
    nets = {n: peaks[n] - befores[n] for n in DEPTHS}
    for what, sizes in (("private memory", peaks), ("the same less the program's before anything was read", nets)):
        growth = 100 * (sizes[last] / sizes[first] - 1)
        each = ", ".join(f"{n} layers {sizes[n] / 1e6:.0f} MB" for n in DEPTHS)
        limit = f" ({told(growth, 10)})" if sizes is peaks else ""
        print(f"peak {what} (median of 3): {each}: grows by {growth:.1f} %{limit}", flush=True)
    each_layer = (nets[last] - nets[first]) / (last - first) / 2
    print(
        f"  {each_layer / 1e3:.0f} kB for each layer of each checkpoint: its modules, without weights, and its tensors' names and places"
    )


def large(folder: Path) -> None:
    make_pair(folder, LARGE_LAYERS, LARGE_WIDTH, torch.bfloat16)
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    ours = child(folder, BUDGET, "bfloat16", 4, "stream")
    peak = int(ours["peak"]) / 1e9
    print(
        f"a pair of {size / 1e9:.1f} GB, budget {BUDGET / 1e9} GB: peak {peak:.2f} GB ({told(peak, BUDGET / 1e9)}), "
        f"{ours['seconds']:.0f} s",
        flush=True,
    )
    theirs = child(folder, None, "bfloat16", 4, "resident")
    apart = abs(np.array(ours["losses"]) - np.array(theirs["losses"])).max()
    print(
        f"  losses apart from the resident sweep's by {apart:.1e} (equal: {told(apart, 0)}); its peak "
        f"{int(theirs['peak']) / 1e9:.2f} GB, {theirs['seconds']:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--scratch", help="a folder for the checkpoints, with 9 GB free")
    parser.add_argument("--child")
    parser.add_argument("--budget", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--mode", default="stream")
    asked = parser.parse_args()
    if asked.child:
        run_child(Path(asked.child), asked.budget, asked.dtype, asked.texts, asked.mode)
        return
    print(f"streamed sweeps; {machine()}", flush=True)
    parts = {asked.only} if asked.only else set(PARTS)
    with tempfile.TemporaryDirectory(dir=asked.scratch) as scratch:
        if parts & {"bytes", "readers", "time", "spill"}:
            make_pair(Path(scratch) / "pair", 24, 512)
            if "readers" in parts:
                readers(Path(scratch) / "pair")
            bytes_and_time(Path(scratch) / "pair", parts)
            if "spill" in parts:
                states_on_disk(Path(scratch) / "pair", Path(scratch) / "spill")
            shutil.rmtree(Path(scratch) / "pair")
        if "memory" in parts:
            memory_over_depth(Path(scratch))
        if "large" in parts:
            large(Path(scratch) / "large")


if __name__ == "__main__":
    main()
