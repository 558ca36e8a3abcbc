"""What a training will take: layer applications on tokens, its steps, and the memory of one of its processes. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from raysweep.engine.plan import hidden_size
from raysweep.engine.residency import layer_sizes
from raysweep.engine.room import SIZES
from raysweep.models.checkpoint import text_config
from raysweep.studies.gradient import GRAPH
from raysweep.studies.substitution import LOGIT_BYTES
from raysweep.studies.trainer_arguments import training_steps
from raysweep.studies.training import Trained

if TYPE_CHECKING:
    from raysweep.data.examples import Example
    from raysweep.engine.calls import TrainCall
    from raysweep.models.checkpoint import Checkpoint

_ADAM = 2  # values that the optimizer keeps of a trained one


@dataclass(frozen=True)
class Training:
    """A training's `steps`; `applications`: times a layer is called on a batch, forth or back; `applied`: times a layer is applied to a token, forth or back, in all processes together, and
    `headed` the same of the head; `memory` of each process, bytes."""

    steps: int
    applications: int
    applied: float
    headed: float
    memory: int


def training_of(call: TrainCall) -> Training:
    """What a call's training takes. Layers that are to be found are taken to lie evenly over the depth.

    Forth each layer is applied once; back once for what lies below it, from the lowest trained layer on, and once more where
    it is trained itself; with checkpoints of activations the way forth is made twice. Test losses are forth alone.
    """
    arguments, base = call.recipe.arguments, call.base
    steps = training_steps(arguments, len(call.examples), call.processes)
    batch = int(arguments.get("per_device_train_batch_size", 8))
    each = batch * int(arguments.get("gradient_accumulation_steps", 1)) * call.processes
    sizes, test = _sizes_of(call.examples), _sizes_of(call.test)
    length = sizes.tokens / max(1, len(call.examples))
    tokens = steps * each * length
    trained = _trained(call)
    lowest = (
        0
        if trained.trains_rest and not call.recipe.lora
        else min((layer for layer in range(base.n_layers) if trained.trains(layer)), default=0)
    )
    n_trained = sum(trained.trains(layer) for layer in range(base.n_layers))
    own = 0 if call.recipe.lora else n_trained
    again = base.n_layers if _recomputes(arguments) else 0
    applied = tokens * (base.n_layers + (base.n_layers - lowest) + own + again)
    tested = _tests(arguments, steps) * test.tokens
    labels = steps * each * sizes.labels / max(1, len(call.examples))
    labels = 2 * labels + _tests(arguments, steps) * test.labels
    memory = _memory(call, trained, n_trained, batch * sizes.longest)
    applied += tested * base.n_layers
    return Training(steps, round(applied / max(1.0, batch * length)), applied, labels, memory)


def _trained(call: TrainCall) -> Trained:
    """The recipe's layers; stand-ins for those that are to be found."""
    trained, found = call.recipe.trained, call.found
    if found is None or trained.layers:
        return trained
    places = tuple(int((i + 0.5) * call.base.n_layers / found.top) for i in range(found.top))
    return Trained(trained.mode, places)


def _memory(call: TrainCall, trained: Trained, n_trained: int, tokens: int) -> int:
    """Bytes of one process: weights, gradients and the optimizer's values (a share of them, sharded), states and logits."""
    base, size = call.base, SIZES[call.recipe.dtype]
    layer, rest = layer_sizes(base, call.recipe.dtype)
    weights = base.n_parameters * size
    changing = n_trained * layer + (rest if trained.trains_rest else 0)
    if call.recipe.lora:
        changing = _lora_bytes(base, call.recipe.lora.r, n_trained)
    held = weights + (1 + _ADAM) * changing
    if call.processes > 1 and call.strategy == "fsdp":
        held = held // call.processes + 2 * layer
    width = hidden_size(base.config) * size
    kept = tokens * width * (base.n_layers + GRAPH if _recomputes(call.recipe.arguments) else GRAPH * base.n_layers)
    vocabulary = int(text_config(base.config).get("vocab_size") or 0)
    return int(held + kept + max(3 * LOGIT_BYTES, 3 * 4 * vocabulary * tokens) * bool(tokens))


def _lora_bytes(base: Checkpoint, rank: int, n_layers: int) -> int:
    """Two low-rank matrices beside each matrix of the attention, as PEFT's defaults mostly have it: four of the model's width."""
    return n_layers * 4 * 2 * rank * hidden_size(base.config) * 4


def _tests(arguments: Any, steps: int) -> int:
    """How often the test loss is measured: before the first step, and every so many; about ten times unless asked otherwise."""
    every = float(arguments.get("eval_steps") or max(1, steps // 10))
    return 1 + math.ceil(steps / (every if every >= 1 else max(1.0, every * steps)))


def _recomputes(arguments: Any) -> bool:
    return bool(arguments.get("activation_checkpointing") or arguments.get("gradient_checkpointing"))


class _Sizes(NamedTuple):
    """All tokens of examples, those that carry loss, and the tokens of the longest."""

    tokens: int
    labels: int
    longest: int


@lru_cache(maxsize=16)  # the same examples are asked about for each model, arm and residency
def _sizes_of(examples: tuple[Example, ...]) -> _Sizes:
    lengths = [example.length for example in examples]
    return _Sizes(sum(lengths), sum(lengths) - sum(e.n_prompt for e in examples), max(lengths, default=0))
