"""Fine-tuning with raysweep's own trainer, which is transformers' and needs accelerate.

`finetune` itself reports its losses as a pandas table and checks its arguments with pydantic, so the checks make the
trainer beneath it, with the arguments and the choice of layers that `finetune` uses.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_checks import limits, models, speed
from gpu_checks.record import NotRunError, Setup
from raysweep.models.loading import load_model
from raysweep.studies.training import Recipe, Trained

if TYPE_CHECKING:
    from raysweep.data.examples import Example
    from raysweep.models.checkpoint import Checkpoint

LOSS = 1e-3  # nats, as a share of the loss
CORRECT = ("training: train losses", "training: test losses", "training: frozen layers that changed")
ALL = Trained()
SPEED = ("training: time per step / limit",)
PEAK = "training: peak bytes"  # in Setup.kept, for memory.py
_ADAM_BYTES = (
    7  # values read and written per parameter: weight, gradient and two moments in; weight and two moments out
)


def require_accelerate() -> None:
    """Raise NotRunError if transformers' trainer cannot be used."""
    if importlib.util.find_spec("accelerate") is None:
        raise NotRunError("accelerate is not installed")


def train(
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    test: Sequence[Example],
    recipe: Recipe,
    folder: Path,
    device: str,
) -> tuple[Any, list[float]]:
    """The trainer after the training, and the times at which its steps ended."""
    from transformers import TrainerCallback, set_seed
    from transformers.trainer_callback import PrinterCallback

    from raysweep.studies.choosing import choose
    from raysweep.studies.process_state import restored_process_state
    from raysweep.studies.trainer import StudyTrainer
    from raysweep.studies.trainer_arguments import make_arguments
    from raysweep.studies.trainer_surroundings import quiet
    from raysweep.studies.training_device import check_device, training_device

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if device.startswith("cuda"):
                import torch

                torch.cuda.synchronize(device)
            ends.append(time.perf_counter())

    with restored_process_state(), training_device(device) as exact, quiet():
        arguments = make_arguments(
            recipe, folder, len(examples), device=str(exact), strategy="fsdp", processes=1, resumed=False
        )
        set_seed(recipe.seed)
        model = choose(load_model(checkpoint, dtype=recipe.dtype), recipe, checkpoint.source)
        trainer = StudyTrainer(model=model, args=arguments, train=examples, test=test, callbacks=[Clock()])
        trainer.remove_callback(PrinterCallback)
        check_device(trainer, exact)
        trainer.train()
        trainer.check_losses()
    return trainer, ends


def recipe_of(steps: int, batch: int, dtype: str, trained: Trained = ALL, **more: Any) -> Recipe:
    """A recipe that logs every step and saves nothing."""
    arguments = {
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "per_device_eval_batch_size": batch,
        "logging_steps": 1,
        "eval_steps": steps,
        "save_strategy": "no",
        "report_to": "none",
        **more,
    }
    return Recipe(trained, arguments=arguments, dtype=dtype)


def check_correct(setup: Setup) -> None:
    """Four steps of a tiny model in float32, some layers frozen, on the CPU and on the device: losses, and frozen weights."""
    require_accelerate()
    made = models.tiny_models("llama")
    checkpoint, _ = models.save_pair(made, setup.folder / "training")
    examples = models.random_examples((9, 17, 12, 24, 17, 14, 20, 11))
    recipe = recipe_of(4, 2, "float32", Trained("only", (1, 2)), learning_rate=1e-3)
    logs, changed = [], 0
    for device in ("cpu", setup.device):
        trainer, _ = train(checkpoint, examples, examples[:4], recipe, setup.folder / "steps", device)
        logs.append(trainer.state.log_history)
        after = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        changed = sum(
            not bool((after[name].cpu() == value).all())
            for name, value in made[0].state_dict().items()
            if ".layers.1." not in name and ".layers.2." not in name
        )
    for name, key in ((CORRECT[0], "loss"), (CORRECT[1], "eval_loss")):
        here, there = ([entry[key] for entry in log if key in entry] for log in logs)
        if len(here) != len(there) or not here:
            raise RuntimeError(f"the trainings logged {len(here)} and {len(there)} values of {key}")
        apart = max(abs(a - b) / abs(a) for a, b in zip(here, there, strict=True))
        setup.add(name, apart, "share of the loss", limit=LOSS)
    setup.add(CORRECT[2], changed, "tensors", limit=0)


def large_recipe(setup: Setup) -> tuple[Recipe, list[Example]]:
    """The recipe and the examples of the training that is timed: all weights in bfloat16."""
    steps, batch, length = (4, 2, 24) if setup.tiny else (8, 8, 512)
    examples = models.random_examples([length] * (steps * batch), models.large_vocabulary(setup))
    return recipe_of(steps, batch, "bfloat16"), examples


def check_speed(setup: Setup) -> None:
    """Seconds per step of training all weights of the large model in bfloat16, without the first two steps.

    The limit is 6 operations for each value of a matrix and token (2 forward, 4 backward), three times those of attention, at
    the rate of a bf16 matmul, plus what AdamW reads and writes (7 values per parameter) at the rate of device memory. Its
    peak memory is kept for the section on memory.
    """
    require_accelerate()
    from raysweep.models.memory import Peak, held_bytes

    base, _ = models.large_checkpoints(setup)
    model = models.large_models(setup)[0]
    recipe, examples = large_recipe(setup)
    batch = recipe.arguments["per_device_train_batch_size"]
    lengths = [example.length for example in examples[:batch]]
    flops = 3 * speed.applied_flops(model, lengths, model.config.num_hidden_layers)
    flops += 3 * sum(lengths) * speed.head_flops(model)
    stored = sum(weight.nbytes for weight in model.parameters())
    limit = flops / setup.value(limits.MATMUL) + _ADAM_BYTES * stored / setup.value(limits.COPY)
    del model
    setup.free_memory()
    before = held_bytes(setup.device)
    with Peak(setup.device) as peak:
        trainer, ends = train(base, examples, examples[:batch], recipe, setup.folder / "timed", setup.device)
    setup.kept[PEAK] = peak.bytes - before
    del trainer
    setup.free_memory()
    seconds = statistics.median(after - before for before, after in pairwise(ends[1:]))
    setup.add(SPEED[0], seconds / limit, note=f"{seconds:.4g} s per step of {sum(lengths)} tokens")
