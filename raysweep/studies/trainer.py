"""transformers' trainer, as a study uses it: examples in, losses a test example out, checkpoints that are known to be whole.

Shapes: B examples, T tokens, V vocabulary.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

from raysweep.data.batches import pad
from raysweep.errors import RunError
from raysweep.studies import sharding
from raysweep.studies.first_loads import Weights
from raysweep.studies.step_losses import StepLosses, not_finite
from raysweep.studies.training import Progress
from raysweep.studies.training_checkpoints import mark_whole

if TYPE_CHECKING:
    from transformers import EvalPrediction, TrainerControl, TrainerState, TrainingArguments

    from raysweep.data.examples import Example

IGNORED = -100  # a label that carries no loss
_POSITIONS = 512  # of so many a time, logits are converted to float32: those of all would take too much memory
_UNTOLD = "untold.json"
_SPLITS = {"loss": "train", "eval_loss": "test"}


class Rows(Dataset[dict[str, Any]]):
    """Examples as the trainer takes them; those of a test set know their place."""

    def __init__(self, examples: Sequence[Example], *, places: bool) -> None:
        self._examples, self._places = examples, places

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._examples[index]
        labels = example.tokens.copy()
        labels[: example.n_prompt] = IGNORED
        row = {"input_ids": example.tokens, "labels": labels}
        return {**row, "place": index} if self._places else row


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows as one batch: input_ids, attention_mask and labels, int64 [B, T], padded at the end; `place` [B] where rows have it."""
    lengths = np.array([len(row["input_ids"]) for row in rows])
    ids = pad([row["input_ids"] for row in rows])
    real = np.arange(ids.shape[1]) < lengths[:, None]
    labels = np.where(real, pad([row["labels"] for row in rows]), IGNORED)
    batch = {"input_ids": ids, "attention_mask": real.astype(np.int64), "labels": labels}
    if "place" in rows[0]:
        batch["place"] = np.array([row["place"] for row in rows], dtype=np.int64)
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def response_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log likelihood in nats over each row's labelled tokens, float64 [B], from logits [B, T, V].

    NaN for a row without one.
    """
    losses = []
    for row, targets in zip(logits[:, :-1], labels[:, 1:], strict=True):
        parts = [
            cross_entropy(some.float(), of, reduction="none", ignore_index=IGNORED).double().sum()
            for some, of in zip(row.split(_POSITIONS), targets.split(_POSITIONS), strict=True)
        ]
        losses.append(torch.stack(parts).sum() / (targets != IGNORED).sum())
    return torch.stack(losses)


def mean_loss(prediction: EvalPrediction, n: int) -> dict[str, float]:
    """The mean over a test set's `n` examples, each counted once; those whose loss is NaN are left out.

    Predictions are losses, label ids the examples' places. Raises RunError where an example is missing.
    """
    found = dict(zip(prediction.label_ids.tolist(), prediction.predictions.tolist(), strict=True))
    if sorted(found) != list(range(n)):
        raise RunError(f"{len(found)} of the {n} test examples were measured; the processes do not share the test set")
    kept = [loss for _, loss in sorted(found.items()) if not math.isnan(loss)]
    return {"loss": math.fsum(kept) / len(kept) if kept else math.nan}


class StudyTrainer(Trainer):  # type: ignore[misc]
    """The trainer, with a loss a test example in place of its mean over tokens, and an end where the loss is not finite.

    With `first_loads`, only the first process's model has weights, and the others get theirs once it is sharded.
    """

    def __init__(
        self, *, test: Sequence[Example], train: Sequence[Example], first_loads: bool = False, **settings: Any
    ) -> None:
        super().__init__(
            train_dataset=Rows(train, places=False),
            eval_dataset=Rows(test, places=True),
            data_collator=collate,
            compute_metrics=lambda prediction: mean_loss(prediction, len(test)),
            **settings,
        )
        self._first_loads = first_loads
        self._weights: Weights | None = None  # what is not distributed yet
        self._losses = StepLosses()
        self._untold: tuple[int, float] | None = None  # of the checkpoint that was taken up

    def create_accelerator_and_postprocess(self) -> None:
        """The trainer's, which shards the model where it was asked to, or refuses (RunError)."""
        if self.args.fsdp:
            sharding.set_precision(self.args)
        super().create_accelerator_and_postprocess()
        if self.args.fsdp:
            sharding.turn_on(self)

    def _prepare_for_training(self, *arguments: Any, **settings: Any) -> Any:
        """The trainer's, which shards the model; then every process gets its shards."""
        if self._first_loads:
            if self.accelerator.mixed_precision != "no":
                sharding.upcast(self.model)  # as accelerate would, which would write to memory that is only reserved
            self._weights = Weights(self.model)
        prepared = super()._prepare_for_training(*arguments, **settings)
        self._distribute()
        return prepared

    def _load_from_checkpoint(self, *arguments: Any, **settings: Any) -> None:
        """The trainer's, after the base's weights are there: a checkpoint of LoRA does not have them."""
        self._distribute()
        super()._load_from_checkpoint(*arguments, **settings)

    def _distribute(self) -> None:
        if self._weights is not None:
            self._weights.distribute(self.model, self.args.device)
            self._weights = None

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """No loss, the examples' losses [B], and their places [B], which the evaluation gathers over processes."""
        inputs = dict(self._prepare_inputs(inputs))
        places, labels = inputs.pop("place"), inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs).logits
        return None, response_losses(logits, labels), places

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """The trainer's, refusing (RunError) a loss that is not finite, at the latest before anything comes of it.

        A GPU computes on meanwhile: each step's loss is looked at in the next step, or in `check_losses`.
        """
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self._losses.add(loss, self.state.global_step + 1, self._get_learning_rate())
        return loss

    def check_losses(self) -> None:
        """Raise RunError, on all processes, if the loss of any step so far is not finite; this waits for the GPU."""
        sharding.all_check(self._losses.check)

    def take_up(self, checkpoint: Path) -> None:
        """Take the losses that a checkpoint's training had not logged yet, so that the next log is of all its steps."""
        try:
            told = json.loads((checkpoint / _UNTOLD).read_bytes())
        except FileNotFoundError:
            return
        self._untold = (int(told["since"]), float(told["loss"]))

    def _maybe_log_save_evaluate(self, tr_loss: torch.Tensor, *more: Any, **settings: Any) -> None:
        """The trainer's, which after an interruption would log the mean loss of the steps since then alone."""
        if self._untold is not None:
            self._globalstep_last_logged, loss = self._untold
            tr_loss += loss
            self._untold = None
        if self.control.should_log or self.control.should_evaluate or self.control.should_save:
            self.check_losses()
        super()._maybe_log_save_evaluate(tr_loss, *more, **settings)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The trainer's, with the losses beside it that are not logged yet."""
        loss = float(self.accelerator.gather(self._tr_loss).mean())
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            told = json.dumps({"since": self._globalstep_last_logged, "loss": loss})
            (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / _UNTOLD).write_text(told)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write checkpoints under the names that the model has its tensors by in memory, for those are what resuming reads.

        Hugging Face's files may have others (a mixture's experts one by one), which the trainer would not find again.
        """
        model = self.accelerator.unwrap_model(self.model)
        if output_dir is not None and hasattr(model, "save_pretrained") and not hasattr(model, "peft_config"):
            if self.args.should_save:
                model.save_pretrained(output_dir, state_dict=state_dict, save_original_format=False)
            return
        super()._save(output_dir, state_dict)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse (RunError) a checkpoint that does not have all of the model's tensors: the rest would be the base's."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or {})
        lost = [name for name in load_result.missing_keys if name not in tied] + list(load_result.unexpected_keys)
        if lost:
            raise RunError(
                f"a checkpoint in {self.args.output_dir} does not fit the model that is trained: {len(lost)} tensors, {lost[0]} "
                "among them; remove that folder to start over"
            )


class Watch(TrainerCallback):  # type: ignore[misc]
    """Tells of progress, keeps weights of asked steps, and sees to checkpoints and to what is logged at the end."""

    def __init__(
        self,
        training: str,
        tell: Callable[[Progress], None] | None,
        keep: Sequence[int],
        keep_step: Callable[[int], None],
    ) -> None:
        self._training, self._tell, self._keep, self._keep_step = training, tell, frozenset(keep), keep_step
        self._started = time.monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Refuse (RunError) to train copies of a model that was to be sharded."""
        if args.fsdp:
            sharding.check_sharded(more["model"], str(args.device))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> TrainerControl:
        """At the end log and evaluate, whatever the cadence; there is nothing to resume then."""
        if state.global_step in self._keep:
            self._keep_step(state.global_step)
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_save = False
            if args.eval_strategy == "no":
                control.should_evaluate = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> TrainerControl:
        """Save nothing at the end."""
        if state.global_step >= state.max_steps:
            control.should_save = False
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Mark the checkpoint whole, once every process has written its part."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            mark_whole(Path(args.output_dir) / f"checkpoint-{state.global_step}", self._training)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """Tell of a loss; one of the test set that is not finite ends the training (RunError)."""
        for name, split in _SPLITS.items():
            if name in (logs or {}):
                loss = float((logs or {})[name])
                if not math.isfinite(loss):
                    finite = [
                        (entry["step"], entry[name])
                        for entry in state.log_history
                        if name in entry and math.isfinite(entry[name])
                    ]
                    rate = more["optimizer"].param_groups[0]["lr"]
                    raise not_finite(f"{split} loss", loss, state.global_step, rate, finite[-1] if finite else None)
                if self._tell and state.is_world_process_zero:
                    seconds = time.monotonic() - self._started
                    self._tell(Progress(state.global_step, state.max_steps, split, loss, seconds))
