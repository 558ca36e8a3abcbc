"""Fine-tuning a checkpoint with transformers' trainer: chosen layers, test loss along the way, resumed where it was cut off.

The trainer is transformers' own (trainer.py), what is trained is choosing.py's, arguments are trainer_arguments.py's. In
several processes each calls `finetune` alike; what is written, and the tuned model, are the first one's.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raysweep.errors import InputError
from raysweep.fingerprint import fingerprint
from raysweep.models.checkpoint import predicts_tokens
from raysweep.models.digest_check import SETTINGS_FILES, unchanged
from raysweep.models.loading import load_model
from raysweep.models.machine_errors import is_machine_error
from raysweep.models.quantisation import is_quantised
from raysweep.store.scratch import scratch_folder
from raysweep.store.whole_folder import publish_folder
from raysweep.studies import sharding
from raysweep.studies.choosing import check_layers, choose
from raysweep.studies.frozen import compare, digests, own_tensors
from raysweep.studies.trainer_arguments import make_arguments, named_arguments, training_steps
from raysweep.studies.trainer_surroundings import offline, quiet
from raysweep.studies.training import Course, Progress, Recipe
from raysweep.studies.training_checkpoints import start_from, step_of

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from raysweep.data.examples import Example
    from raysweep.models.checkpoint import Checkpoint
    from raysweep.studies.trainer import StudyTrainer

# Arguments that leave the weights as they are: a training that is resumed may have others.
_BESIDE = (
    "logging_",
    "eval_",
    "save_",
    "report_to",
    "run_name",
    "project",
    "per_device_eval",
    "dataloader_num_workers",
)


@dataclass(frozen=True)
class Tuned(Course):
    """A fine-tuned model (of a LoRA recipe a PeftModel), in evaluation mode, and how it came to be."""

    model: nn.Module


def finetune(
    base: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Example],
    test: Sequence[Example],
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "cpu",
    strategy: Literal["ddp", "fsdp"] = "fsdp",
    tell: Callable[[Progress], None] | None = None,
) -> Tuned:
    """Train `base` on the responses of `train`, and measure the loss on `test` along the way.

    `folder` has the trainer's checkpoints: called again after an interruption, training goes on from the last whole one. The
    weights of `recipe.keep` steps are written there as `step-N`, as `save_tuned` writes them. A test loss is the mean over
    examples of the mean over response tokens, in nats. The same recipe gives the same weights; its seed decides on the order
    of examples, dropout and LoRA's first values.

    Raises InputError for a recipe that does not fit the model or the data, RunError for a loss that is not finite, and
    where a frozen tensor is not what it was.
    """
    from raysweep.studies.process_state import restored_process_state
    from raysweep.studies.training_device import check_device, training_device

    recipe = replace(recipe, arguments=named_arguments(recipe.arguments, "trainer"))
    processes = sharding.processes()
    steps = _check(base, train, test, recipe, processes)
    folder.mkdir(parents=True, exist_ok=True)
    training = _identity(base, train, recipe, processes, strategy)
    start = sharding.first_decides(lambda: start_from(folder, training))
    with (
        restored_process_state(),
        training_device(device) as exact,
        quiet(),
        offline(recipe.arguments.get("report_to"), folder),
    ):
        trainer, before = _prepare(
            base, tokenizer, train, test, recipe, folder, str(exact), strategy, tell, training, start
        )
        check_device(trainer, exact)
        if start is not None:
            trainer.take_up(start)
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
        trainer.check_losses()
        tuned = _finished(trainer, lambda: _chosen(base, recipe))
    resumed_from, rows = None if start is None else step_of(start), loss_rows(trainer.state.log_history)
    _take_apart(trainer)
    if sharding.rank() != 0:
        return Tuned(rows, steps, resumed_from, 0, 0, (), tuned.eval())
    names = _names(tuned)
    trained = {names[name] for name, parameter in tuned.named_parameters() if parameter.requires_grad}
    after = {names[name]: value for name, value in digests(own_tensors(tuned)).items()}
    kept = compare(before, after, trained)
    tuned.requires_grad_(False)
    return Tuned(rows, steps, resumed_from, kept.frozen, kept.changed, kept.unchanged, tuned.eval())


def save_tuned(
    tuned: Tuned | nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, base: Checkpoint | None = None
) -> None:
    """Write a tuned model and its tokenizer as Hugging Face writes them: a checkpoint, or a PEFT adapter's folder.

    A checkpoint gets the generation_config.json of its `base` as it is; transformers would refuse to write some of them.
    """
    model: Any = tuned.model if isinstance(tuned, Tuned) else tuned
    more = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}  # else PEFT asks the hub
    model.save_pretrained(folder, **more)
    tokenizer.save_pretrained(folder)
    if base is not None and not more and (generation := base.folder / "generation_config.json").is_file():
        shutil.copyfile(generation, folder / generation.name)


def loss_rows(history: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The trainer's log as rows (step, split, loss), train before test; of a step that was logged twice the later."""
    import pandas as pd

    found = {
        (split, int(entry["step"])): float(entry[name])
        for name, split in (("loss", "train"), ("eval_loss", "test"))
        for entry in history
        if name in entry
    }
    rows = [(step, split, loss) for (split, step), loss in found.items()]
    return pd.DataFrame(rows, columns=["step", "split", "loss"]).astype({"step": "int64", "loss": float})


def _check(base: Checkpoint, train: Sequence[Example], test: Sequence[Example], recipe: Recipe, processes: int) -> int:
    """The number of steps; refuse (InputError) what cannot be trained before anything is loaded."""
    if not predicts_tokens(base):
        raise InputError(f"'{base.source}' does not predict the next token, and cannot be fine-tuned on responses")
    for examples, what in ((train, "train on"), (test, "measure the loss on")):
        if not any(example.n_tokens for example in examples):
            raise InputError(f"there is no example with a response to {what} for '{base.source}'")
    check_layers(recipe.trained, base.n_layers, base.source)
    steps = training_steps(recipe.arguments, len(train), processes)
    late = [step for step in recipe.keep if not 1 <= step <= steps]
    if late:
        raise InputError(
            f"the weights of step {late[0]} are requested, but the training has {steps} steps (1 to {steps})"
        )
    return steps


def _prepare(
    base: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Example],
    test: Sequence[Example],
    recipe: Recipe,
    folder: Path,
    device: str,
    strategy: Literal["ddp", "fsdp"],
    tell: Callable[[Progress], None] | None,
    training: str,
    start: Path | None,
) -> tuple[StudyTrainer, dict[str, str]]:
    """The trainer of a model with what is trained chosen, and on the first process the digests of its tensors."""
    from transformers import set_seed
    from transformers.trainer_callback import PrinterCallback

    from raysweep.studies.first_loads import load_on_first
    from raysweep.studies.trainer import StudyTrainer, Watch

    arguments = make_arguments(
        recipe,
        folder,
        len(train),
        device=device,
        strategy=strategy,
        processes=sharding.processes(),
        resumed=start is not None,
    )
    set_seed(recipe.seed)
    first_loads = bool(arguments.fsdp) and not is_quantised(base)  # quantised weights are unpacked by their own code
    model: Any = (
        load_on_first(lambda: _chosen(base, recipe), lambda: _without_weights(base, recipe))
        if first_loads
        else _chosen(base, recipe)
    )
    names = _names(model)
    before = {names[name]: value for name, value in digests(own_tensors(model)).items()} if sharding.rank() == 0 else {}
    uses_cache = model.config.use_cache

    def keep_step(step: int) -> None:
        trainer.check_losses()
        _write_step(
            sharding.whole(_unwrapped(trainer), lambda: _chosen(base, recipe)),
            tokenizer,
            folder / f"step-{step}",
            uses_cache,
            base,
        )

    try:
        trainer = StudyTrainer(
            model=model,
            args=arguments,
            train=train,
            test=test,
            first_loads=first_loads,
            callbacks=[Watch(training, tell, recipe.keep, keep_step)],
        )
    except (ValueError, ImportError, RuntimeError) as error:
        if is_machine_error(error):
            raise
        raise InputError(f"trainer is refused by transformers' trainer: {' '.join(str(error).split())}") from error
    trainer.remove_callback(PrinterCallback)
    trainer.uses_cache = uses_cache
    return trainer, before


def _chosen(base: Checkpoint, recipe: Recipe) -> Any:
    """The base, with what is trained chosen."""
    return choose(load_model(base, dtype=recipe.dtype), recipe, base.source)


def _without_weights(base: Checkpoint, recipe: Recipe) -> Any:
    """The same model on the meta device; no weight is read."""
    import torch

    from raysweep.models.skeleton import empty_model

    with unchanged(base, SETTINGS_FILES):
        model = empty_model(base, getattr(torch, recipe.dtype))
    return choose(model.eval().requires_grad_(False), recipe, base.source)


def _finished(trainer: StudyTrainer, fresh: Callable[[], nn.Module]) -> Any:
    """The trained model by itself, as it was before the trainer took it: on one process, or the whole of it on the first."""
    model: Any = sharding.whole(_unwrapped(trainer), fresh)
    trainer.optimizer = trainer.lr_scheduler = trainer.callback_handler.optimizer = None
    if trainer.args.device.type != "cpu":
        trainer.accelerator.free_memory()
    model.zero_grad(set_to_none=True)
    if getattr(model, "is_activation_checkpointing", False):
        model.activation_checkpointing_disable()
    model.config.use_cache = trainer.uses_cache
    return model


def _take_apart(trainer: StudyTrainer) -> None:
    """Break the reference cycles of a trainer that is done: else the model stays in memory until a collection."""
    for each in (trainer.callback_handler, trainer.accelerator, trainer):
        each.__dict__.clear()


def _unwrapped(trainer: StudyTrainer) -> Any:
    return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False)


def _write_step(
    model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path, uses_cache: bool, base: Checkpoint
) -> None:
    """Write the weights of a step, whole or not at all; those of an earlier attempt go."""
    if sharding.rank() != 0:
        return
    part, now = folder.with_name(f"{folder.name}.part"), model.config.use_cache
    shutil.rmtree(part, ignore_errors=True)
    model.config.use_cache = uses_cache
    save_tuned(model, tokenizer, part, base)
    model.config.use_cache = now
    with scratch_folder(folder.parent) as aside:
        publish_folder(part, folder, aside=aside)


def _names(model: nn.Module) -> dict[str, str]:
    """A model's tensors' names → those that they have without PEFT around them."""
    return {
        name: name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        if hasattr(model, "peft_config")
        else name
        for name in own_tensors(model)
    }


def _identity(base: Checkpoint, train: Sequence[Example], recipe: Recipe, processes: int, strategy: str) -> str:
    """What makes a training this one: only its own checkpoints are resumed."""
    digest = hashlib.sha256()
    for example in train:
        digest.update(f"{example.n_prompt}/{example.length};".encode() + example.tokens.tobytes())
    told = asdict(recipe)
    told["arguments"] = {name: value for name, value in told["arguments"].items() if not name.startswith(_BESIDE)}
    told.pop("keep")
    shared = processes if processes == 1 else [processes, strategy]
    return fingerprint({"base": base.fingerprint, "train": digest.hexdigest(), "recipe": told, "processes": shared})
