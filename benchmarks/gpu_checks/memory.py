"""Peak memory of a call ÷ what raysweep's plan estimates for it: tensors on a CUDA device, anonymous memory on the CPU.

The plan is the engine's own: what is loaded (engine/loads.py) and the states of the largest pass (engine/demands.py).
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gpu_checks import models, training
from gpu_checks.record import Setup
from raysweep.engine.calls import CaptureCall, Loading, ModelCall, SubstituteCall, TrainCall
from raysweep.engine.demands import Demands
from raysweep.engine.loads import Loads
from raysweep.engine.room import Needs, sweep_batches
from raysweep.models.adapter import Adapter
from raysweep.models.memory import Peak, held_bytes, private_bytes
from raysweep.models.same import NOTHING
from raysweep.models.sizes import layer_sizes
from raysweep.studies.capture import capture_states
from raysweep.studies.substitution import Pair, sweep_losses
from raysweep.studies.windows import windows_of_widths

if TYPE_CHECKING:
    from raysweep.models.checkpoint import Checkpoint

FIGURES = (
    "sweep: peak memory / plan",
    "capture: peak memory / plan",
    "streamed sweep: peak memory / plan",
    "streamed sweep: peak memory / execution.memory",
)
TRAINING = ("training: peak memory / plan",)
_SLACK = 2**28  # bytes by which the process may grow besides, such as constants that libraries keep
PLAN = 1.25  # the limit on a CUDA device; the CPU's anonymous memory also has what the program itself takes and keeps


def planned_bytes(call: ModelCall, room: int = 0) -> int:
    """The plan's bytes for a call on a worker that has nothing loaded; `room` is what states may take if it streams."""
    residency = SimpleNamespace(memory=call.loading.memory, room=room)
    facts: Any = SimpleNamespace(device=call.loading.device, models={call.model: SimpleNamespace(residency=residency)})
    loads = Loads(2)
    loads.of(call)
    return loads.held + Demands(facts, {}, loads).of(call).states


def sweep_call(setup: Setup, checkpoints: tuple[Checkpoint, Checkpoint]) -> SubstituteCall:
    """A sweep of the large model in one chunk."""
    base, tuned = checkpoints
    loading = Loading("bfloat16", setup.device, None, models.batch_tokens(setup))
    windows = tuple(windows_of_widths(base.n_layers, [base.n_layers // 3]))
    examples = tuple(models.large_examples(setup))
    return SubstituteCall(
        "substitute", "large", "random", (), base, loading, examples, tuned, windows, (), NOTHING, (len(examples),)
    )


def check(setup: Setup) -> None:
    """Load and run a sweep, a capture and a streamed sweep of the large model, each with nothing else in memory."""
    checkpoints = models.large_checkpoints(setup)
    setup.free_memory()
    base, tuned = checkpoints
    call = sweep_call(setup, checkpoints)
    loading = call.loading

    def load(checkpoint: Checkpoint) -> Adapter:
        return models.load(checkpoint, loading.dtype, loading.device)

    def sweep() -> None:
        sweep_losses(Pair(load(base), load(tuned)), call.examples, call.windows, batch_tokens=loading.batch_tokens)

    _compare(setup, FIGURES[0], sweep, planned_bytes(call))

    capture = CaptureCall("capture", "large", "random", (), base, loading, call.examples, (), "last")
    _compare(
        setup,
        FIGURES[1],
        lambda: capture_states(load(base), call.examples, batch_tokens=loading.batch_tokens),
        planned_bytes(capture),
    )
    _check_streamed(setup, call)


def _check_streamed(setup: Setup, call: SubstituteCall) -> None:
    """A streamed sweep whose `execution.memory` holds the states of two batches."""
    loading, base = call.loading, call.base
    batches = sweep_batches(base, call.examples, loading.batch_tokens)
    needs = Needs.of(base, loading.dtype, batches, call.windows, batch_tokens=loading.batch_tokens)
    layer, rest = layer_sizes(base, loading.dtype)
    program = 0 if setup.cuda else private_bytes()
    room = needs.at_work + 2 * max(need.states + need.fixed for need in needs.batches)
    memory = program + 2 * (2 * layer + rest) + room + _SLACK
    call = replace(call, loading=replace(loading, stream=True, memory=memory))

    def sweep() -> None:
        pair = models.streamed_pair((base, call.tuned), loading.dtype, loading.device)
        bounded = replace(pair, memory=memory)
        sweep_losses(bounded, call.examples, call.windows, batch_tokens=loading.batch_tokens)

    peak = _compare(setup, FIGURES[2], sweep, planned_bytes(call, room))
    setup.add(
        FIGURES[3],
        (program + peak) / memory,
        limit=1.0 if setup.cuda else None,
        note=f"{(program + peak) / 1e6:.4g} MB of {memory / 1e6:.4g} MB",
    )


def check_training(setup: Setup) -> None:
    """The peak that the timed training had, against the plan's bytes for it."""
    training.require_accelerate()
    base, _ = models.large_checkpoints(setup)
    recipe, examples = training.large_recipe(setup)
    loading = Loading(recipe.dtype, setup.device, None, models.batch_tokens(setup))
    call = TrainCall(
        "train",
        "large",
        "random",
        (),
        base,
        loading,
        tuple(examples),
        tuple(examples[:2]),
        "finetune",
        "all",
        recipe,
        None,
        "",
        {},
    )
    peak = setup.kept.get(training.PEAK)
    if peak is None:
        raise RuntimeError("the timed training did not end, so there is no peak to compare")
    _add(setup, TRAINING[0], peak, planned_bytes(call))


def _compare(setup: Setup, name: str, work: Callable[[], object], planned: int) -> int:
    """Record the peak of the work above what was held before, and return it."""
    setup.free_memory()
    before = held_bytes(setup.device)
    with Peak(setup.device) as peak:
        work()
        setup.synchronize()
    gc.collect()
    _add(setup, name, peak.bytes - before, planned)
    return peak.bytes - before


def _add(setup: Setup, name: str, peak: int, planned: int) -> None:
    setup.add(
        name,
        peak / planned,
        limit=PLAN if setup.cuda else None,
        note=f"{peak / 1e6:.4g} MB, planned {planned / 1e6:.4g} MB",
    )
