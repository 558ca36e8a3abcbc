"""What a training will take: layer applications on tokens, its steps, and the memory of one of its processes. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from raysweep.models.sizes import SIZES, hidden_size, layer_sizes, vocabulary_size
from raysweep.studies.gradient import GRAPH
from raysweep.studies.trainer_arguments import DEFAULTS, cadence, training_steps
from raysweep.studies.training import Trained

if TYPE_CHECKING:
    from raysweep.data.examples import Example
    from raysweep.engine.calls import TrainCall
    from raysweep.models.checkpoint import Checkpoint

_ADAM = 2  # values that the optimizer keeps of a trained one


@dataclass(frozen=True)
class Training:
    """A training's `steps`; `applications`, times a layer is called on a batch, forth or back; `applied`, times a layer is applied
    to a token, padding among them, and `headed` the same of the head, both in all processes together; `memory` of each
    process, bytes."""

    steps: int
    applications: int
    applied: float
    headed: float
    memory: int


def training_of(call: TrainCall) -> Training:
    """What a call's training takes. Layers that are to be found are taken to lie evenly over the depth."""
    call = replace(call, recipe=replace(call.recipe, trained=_trained(call)), found=None)
    arguments, base = call.recipe.arguments, call.base
    steps = training_steps(arguments, len(call.examples), call.processes)
    tests, batch = _tests(call, steps), _batch(arguments)
    batches = _batches(call, steps) * call.processes
    trained_on, tested = _sizes_of(call.examples, batch), _sizes_of(call.test, 1)
    seen = batches * batch / max(1, len(call.examples))  # how often each example is
    return Training(
        steps,
        layer_calls(call, 0, steps, tests),
        seen * trained_on.padded * _passes(call) + tests * tested.padded * base.n_layers,
        2 * seen * trained_on.labels + tests * tested.labels,
        _memory(call, batch * trained_on.longest, tested.longest),
    )


def layer_calls(call: TrainCall, first: int, last: int, tests: int) -> int:
    """How often a layer is called on a batch, forth or back, from step `first` to `last` and in so many test losses.

    In all processes together; the call's recipe has its layers.
    """
    size = int(call.recipe.arguments.get("per_device_eval_batch_size", 8))
    each = -(-len(call.test) // (size * call.processes))
    batches = _batches(call, last) - _batches(call, first)
    return call.processes * (batches * _passes(call) + tests * each * call.base.n_layers)


def _passes(call: TrainCall) -> int:
    """How often a layer is called, forth or back, where the model is trained on one batch.

    Forth each layer once; back once for what lies below it, from the lowest trained layer on, and once more where it is trained
    itself; with checkpoints of activations the way forth is made twice.
    """
    trained, n_layers = call.recipe.trained, call.base.n_layers
    own = sum(trained.trains(layer) for layer in range(n_layers))
    again = n_layers if _recomputes(call.recipe.arguments) else 0
    return n_layers + n_layers - _lowest(call) + (0 if call.recipe.lora else own) + again


def _lowest(call: TrainCall) -> int:
    """The layer that gradients go back to: below it nothing is trained, and nothing is kept for the way back."""
    trained = call.recipe.trained
    if trained.trains_rest and not call.recipe.lora:
        return 0
    return next((layer for layer in range(call.base.n_layers) if trained.trains(layer)), 0)


def _batches(call: TrainCall, steps: int) -> int:
    """Batches of one process up to a step: so many a step, fewer in the last of an epoch where they do not come out even."""
    arguments, batch = call.recipe.arguments, _batch(call.recipe.arguments)
    accumulated = int(arguments.get("gradient_accumulation_steps", 1))
    n = len(call.examples)
    each = n // batch if arguments.get("dataloader_drop_last") else -(-n // batch)
    each = max(1, -(-each // call.processes))
    epochs, left = divmod(steps, -(-each // accumulated))
    return epochs * each + min(each, left * accumulated)


def _batch(arguments: Mapping[str, Any]) -> int:
    return int(arguments.get("per_device_train_batch_size", 8))


def _trained(call: TrainCall) -> Trained:
    """The recipe's layers; stand-ins for those that are to be found."""
    trained, found = call.recipe.trained, call.found
    if found is None or trained.layers:
        return trained
    places = tuple(int((i + 0.5) * call.base.n_layers / found.top) for i in range(found.top))
    return Trained(trained.mode, places)


def _memory(call: TrainCall, tokens: int, longest: int) -> int:
    """Bytes of one process: weights, gradients and the optimizer's values (a share of them, sharded), states and logits.

    The trainer has the logits of all of a batch at once, of `tokens` to train on and of test examples up to the `longest`: those in
    three float32 copies beside the states that are kept for the way back, these as they come, and two float32 copies of one example's.
    """
    base, size = call.base, SIZES[call.recipe.dtype]
    held = base.n_parameters * size + (1 + _ADAM) * _changing(call)
    if call.processes > 1 and call.strategy == "fsdp":
        held = held // call.processes + 2 * layer_sizes(base, call.recipe.dtype)[0]
    width = hidden_size(base.config) * size
    n_layers = base.n_layers
    kept = (
        tokens
        * width
        * (n_layers + GRAPH if _recomputes(call.recipe.arguments) else GRAPH * (n_layers - _lowest(call)))
    )
    vocabulary = vocabulary_size(base.config)
    tested = vocabulary * longest * (size * int(call.recipe.arguments.get("per_device_eval_batch_size", 8)) + 2 * 4)
    return int(held + max(kept + 3 * 4 * vocabulary * tokens, tested))


def written(call: TrainCall) -> tuple[int, int]:
    """Bytes of the checkpoints that a training leaves, and of what it needs to go on while it lasts.

    That is as many trainer's checkpoints as it keeps, and one more while that is written, each of weights and the optimizer's
    two values (Adam's) of each trained one.
    """
    call = replace(call, recipe=replace(call.recipe, trained=_trained(call)), found=None)
    arguments, weights = call.recipe.arguments, call.base.n_parameters * SIZES[call.recipe.dtype]
    changing = _changing(call)
    whole = changing if call.recipe.lora else weights
    kept = whole * (1 + len(call.steps)) if call.kept is not None else 0
    saves = _word(arguments.get("save_strategy", "steps")) != "no"
    limit = int(arguments.get("save_total_limit") or DEFAULTS["save_total_limit"])
    return kept, (limit + 1) * (whole + _ADAM * changing) * saves


def _changing(call: TrainCall) -> int:
    """Bytes of the values that are trained."""
    trained, base = call.recipe.trained, call.base
    n_trained = sum(trained.trains(number) for number in range(base.n_layers))
    if call.recipe.lora:
        return _lora_bytes(base, call.recipe.lora.r, n_trained)
    layer, rest = layer_sizes(base, call.recipe.dtype)
    return n_trained * layer + (rest if trained.trains_rest else 0)


def _lora_bytes(base: Checkpoint, rank: int, n_layers: int) -> int:
    """Two low-rank matrices beside each matrix of the attention, as PEFT's defaults mostly have it: four of the model's width."""
    return n_layers * 4 * 2 * rank * hidden_size(base.config) * 4


def _tests(call: TrainCall, steps: int) -> int:
    """How often the test loss is measured: before the first step, every so often, and after the last."""
    arguments = call.recipe.arguments
    strategy = _word(arguments.get("eval_strategy", "steps"))
    if strategy == "no":
        return 2
    every = float(arguments.get("eval_steps") or cadence(steps)["eval_steps"])
    if strategy == "epoch":
        every = training_steps(
            {**arguments, "max_steps": -1, "num_train_epochs": 1}, len(call.examples), call.processes
        )
    elif every < 1:
        every = math.ceil(every * steps)
    return 1 + math.ceil(steps / every)


def _word(value: Any) -> str:
    """An argument's word: checked, it is a member of an enumeration."""
    return str(getattr(value, "value", value))


def _recomputes(arguments: Any) -> bool:
    return bool(arguments.get("activation_checkpointing") or arguments.get("gradient_checkpointing"))


class _Sizes(NamedTuple):
    """Tokens of examples in batches as long as their longest, tokens that carry loss, and those of the longest example."""

    padded: int
    labels: int
    longest: int


@lru_cache(maxsize=16)  # the same examples are asked about for each model, arm and residency
def _sizes_of(examples: tuple[Example, ...], batch: int) -> _Sizes:
    lengths = [example.length for example in examples]
    padded = sum(max(run) * len(run) for run in (lengths[i : i + batch] for i in range(0, len(lengths), batch)))
    return _Sizes(padded, sum(lengths) - sum(e.n_prompt for e in examples), max(lengths, default=0))
