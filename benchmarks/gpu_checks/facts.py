"""What else must hold on a CUDA device: contexts, free memory, running out of memory, synchronisations, sticky errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from gpu_checks import memory, models
from gpu_checks.record import Setup
from raysweep.engine.calls import SubstituteCall
from raysweep.engine.device_failure import dead_context
from raysweep.engine.memory import Budgets
from raysweep.models.adapter import Adapter
from raysweep.models.machine_errors import is_out_of_memory
from raysweep.models.memory import free_bytes, held_bytes
from raysweep.models.release import drop_locals, free_memory
from raysweep.studies import substitution
from raysweep.studies.capture import capture_states
from raysweep.studies.generation import generate_text
from raysweep.studies.substitution import Pair, sweep_losses
from raysweep.studies.windows import windows_of_widths

CONTEXT = ("CUDA contexts after importing and planning",)
MEMORY = ("free memory / memory of the device", "free memory: fall / bytes allocated")
OUT_OF_MEMORY = (
    "little memory: failed attempts",
    "out of memory: failed attempts",
    "out of memory: difference of losses",
    "out of memory: bytes kept",
)
SYNCHRONISATIONS = (
    "synchronisations per batch of a sweep",
    "synchronisations per batch of a capture",
    "synchronisations per token of a text",
)
STATE = ("torch.compile: compiled frames", "torch settings that changed")
STICKY = (
    "sticky error: later calls that succeed",
    "sticky error: taken for out of memory",
    "sticky error: not recognised as a dead context",
)
_NEEDS_CUDA = "needs a CUDA device"
_LOSS = 1e-2  # share of the loss, in bfloat16 with batches of another size
_KEPT = 2**20  # bytes that the process may hold after it ran out of memory: constants that libraries keep


def check_context(setup: Setup) -> None:
    """Import every path and plan a sweep in a new process, which must not create a CUDA context."""
    models.large_checkpoints(setup)
    found = _child(setup, "plan")
    setup.add(CONTEXT[0], found["contexts"], limit=0)


def check_free_memory(setup: Setup) -> None:
    """free_bytes lies between 0 and the memory of the device, and falls when memory is taken."""
    setup.free_memory()
    if setup.cuda:
        total = torch.cuda.get_device_properties(setup.device).total_memory
    else:
        total = int(Path("/proc/meminfo").read_text(encoding="ascii").split()[1]) * 1024
    before = free_bytes(setup.device)
    if before <= 0:
        raise RuntimeError(f"free_bytes({setup.device!r}) is {before}")
    setup.add(MEMORY[0], before / total, limit=1)
    size = 2**26 if setup.tiny else 2**30
    taken = torch.ones(size, dtype=torch.uint8, device=setup.device)
    setup.add(MEMORY[1], (before - free_bytes(setup.device)) / size, note="0.8 is expected: a fifth stays free")
    del taken
    setup.free_memory()


def check_out_of_memory(setup: Setup) -> None:
    """Run a sweep with too little memory left, halving its batches as a worker does, and compare the losses.

    On a CUDA device other tensors take all memory but half of what the sweep needs. First the sweep fits its batches to
    what is free, as it always does there. Then it does not, so that memory runs out. On the CPU the first attempt
    raises torch's own error instead.
    """
    checkpoints = models.large_checkpoints(setup)
    setup.free_memory()
    pair = Pair(*map(Adapter, models.large_models(setup)))
    call = memory.sweep_call(setup, checkpoints)
    call = replace(call, loading=replace(call.loading, batch_tokens=sum(e.length for e in call.examples)))

    def sweep(tokens: int) -> np.ndarray:
        return sweep_losses(pair, call.examples, call.windows, batch_tokens=tokens)

    whole = call.loading.batch_tokens
    losses = sweep(whole)
    setup.free_memory()
    before = held_bytes(setup.device)
    others = _take_all_but_half(setup, lambda: sweep(whole), lambda: sweep(whole // 4))
    failed, fitted = _attempts(call, sweep, None)
    setup.add(OUT_OF_MEMORY[0], failed)
    error = None if setup.cuda else torch.OutOfMemoryError("a stand-in for the device's own error")
    with patch.object(substitution, "fitting_batch", lambda pair, lengths, windows, tokens: tokens):
        failed, found = _attempts(call, sweep, error)
    del others
    setup.free_memory()
    if not failed:
        raise RuntimeError("memory did not run out, so the check shows nothing")
    setup.add(OUT_OF_MEMORY[1], failed, note=f"the first with batches of {whole} tokens")
    apart = max(float((np.abs(each - losses) / losses).max()) for each in (fitted, found))
    setup.add(OUT_OF_MEMORY[2], apart, "share of the loss", limit=_LOSS)
    kept = max(0, held_bytes(setup.device) - before)
    setup.add(OUT_OF_MEMORY[3], kept, "B", limit=_KEPT if setup.cuda else None)


def _attempts(
    call: SubstituteCall, sweep: Callable[[int], np.ndarray], first: Exception | None
) -> tuple[int, np.ndarray]:
    """How often memory runs out until batches are small enough, and the losses then. `first` is raised before all else."""
    budgets, failed = Budgets(), 0
    while True:
        try:
            if first is not None and not failed:
                raise first
            return failed, sweep(budgets.of(call))
        except Exception as error:
            if not is_out_of_memory(error) or not budgets.halve(call):
                raise
            drop_locals(error)
        failed += 1
        free_memory()


def _take_all_but_half(setup: Setup, large: Callable[[], object], small: Callable[[], object]) -> torch.Tensor | None:
    """Take the device's memory, except for the mean of what two pieces of work need."""
    if not setup.cuda:
        return None
    peaks = []
    for work in (large, small):
        setup.free_memory()
        before = held_bytes(setup.device)
        torch.cuda.reset_peak_memory_stats(setup.device)
        work()
        peaks.append(torch.cuda.max_memory_allocated(setup.device) - before)
    setup.free_memory()
    free, _ = torch.cuda.mem_get_info(torch.device(setup.device))
    return torch.empty(free - sum(peaks) // 2, dtype=torch.uint8, device=setup.device)


def check_synchronisations(setup: Setup) -> None:
    """Count where the host waits for the device, with torch's own debug mode. The notes have the lines."""
    if not setup.cuda:
        for name in SYNCHRONISATIONS:
            setup.missing(name, _NEEDS_CUDA)
        return
    pair = models.pair_on(setup.device, models.tiny_models("llama"))
    examples, windows = models.random_examples([17] * 8), windows_of_widths(pair.n_layers, [1])
    tokens, batches, new_tokens = 2 * 16, 4, 16

    def count(name: str, work: Callable[[], object], each: int) -> None:
        work()  # what is made only once
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        lines = Counter(
            f"{'/'.join(Path(warning.filename).parts[-2:])}:{warning.lineno}"
            for warning in caught
            if "called a synchronizing CUDA operation" in str(warning.message)
        )
        note = ", ".join(f"{line} {n} times" for line, n in lines.most_common(8))
        setup.add(name, lines.total() / each, note=note)

    count(SYNCHRONISATIONS[0], lambda: sweep_losses(pair, examples, windows, batch_tokens=tokens), batches)
    prompts = models.random_examples([33] * 8)  # 16 tokens in each prompt
    count(SYNCHRONISATIONS[1], lambda: capture_states(pair.base, prompts, batch_tokens=tokens), batches)
    count(
        SYNCHRONISATIONS[2],
        lambda: generate_text(pair, models.Digits(), examples[:1], windows[:2], new_tokens=new_tokens),
        new_tokens,
    )


def torch_settings() -> dict[str, Any]:
    """Process-wide settings of torch that a call must leave as they were."""
    return {
        "matmul tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn tf32": torch.backends.cudnn.allow_tf32,
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "default dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
    }


def check_state(setup: Setup) -> None:
    """Nothing was compiled in this process, and torch's settings are as they were at its start."""
    compiled = 0
    if "torch._dynamo.utils" in sys.modules:
        compiled = sum(sys.modules["torch._dynamo.utils"].counters["frames"].values())
    setup.add(STATE[0], compiled, limit=0)
    before, now = setup.kept["settings"], torch_settings()
    changed = [name for name, value in before.items() if now[name] != value]
    setup.add(STATE[1], len(changed), limit=0, note=", ".join(changed))


def check_sticky(setup: Setup) -> None:
    """Provoke a device-side assertion in a process of its own: every later call must fail, with an error that says why."""
    if not setup.cuda:
        for name in STICKY:
            setup.missing(name, _NEEDS_CUDA)
        return
    found = _child(setup, "sticky")
    setup.add(STICKY[0], found["succeeded"], limit=0)
    setup.add(STICKY[1], found["out of memory"], limit=0, note=found["error"])
    setup.add(STICKY[2], found["not recognised"], limit=0, note=found["error"])


def _child(setup: Setup, task: str) -> dict[str, Any]:
    """What a new process prints after `task`, a key of _TASKS."""
    here = Path(__file__).parents[1]
    folder = setup.folder / "large"
    code = f"import sys; sys.path[:0] = {[str(here.parent), str(here)]!r}; from gpu_checks import facts; facts.child()"
    command = [sys.executable, "-c", code, task, setup.device, str(folder), str(int(setup.tiny))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(10, min(120, setup.left)))
    if done.returncode:
        raise RuntimeError(f"the process for '{task}' ended with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child() -> None:
    """The new process: do the task that the command line names, and print what was found as JSON."""
    task, device, folder, tiny = sys.argv[1:]
    print(json.dumps(_TASKS[task](Setup(device, tiny == "1", Path(folder), 60))), flush=True)
    os._exit(0)  # what a broken context does to destructors is of no interest


def _plan(setup: Setup) -> dict[str, Any]:
    from raysweep.models.checkpoint import describe

    checkpoints = describe(str(setup.folder / "base")), describe(str(setup.folder / "tuned"))
    call = memory.sweep_call(setup, checkpoints)
    memory.planned_bytes(call)
    memory.planned_bytes(replace(call, loading=replace(call.loading, stream=True, memory=2**34)), 2**33)
    return {"contexts": int(torch.cuda.is_initialized())}


def _sticky(setup: Setup) -> dict[str, Any]:
    pair: Pair = models.pair_on(setup.device, models.tiny_models("llama"))
    examples, windows = models.random_examples([12, 9]), windows_of_widths(pair.n_layers, [1])
    sweep_losses(pair, examples, windows)
    with suppress(RuntimeError):
        torch.zeros(4, device=setup.device)[torch.tensor([9], device=setup.device)].cpu()
    succeeded, errors = 0, []
    for _ in range(2):
        try:
            sweep_losses(pair, examples, windows)
            succeeded += 1
        except Exception as error:
            errors.append(error)
    return {
        "succeeded": succeeded,
        "out of memory": sum(map(is_out_of_memory, errors)),
        "not recognised": sum(not dead_context(error, setup.device) for error in errors),
        "error": " ".join(str(errors[0]).split())[:120] if errors else "",
    }


_TASKS: dict[str, Callable[[Setup], dict[str, Any]]] = {"plan": _plan, "sticky": _sticky}
