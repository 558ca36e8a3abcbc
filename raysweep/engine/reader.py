"""Reading a model's records at inspection: as they are, as a plan expects them, or with a backdoor's trigger in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.config import ModelConfig
from raysweep.config_backdoor import BackdoorConfig
from raysweep.config_datasets import DatasetConfig
from raysweep.config_exclude import ExcludeConfig
from raysweep.data.examples import Example, Loaded, Room, load_examples
from raysweep.data.exclusion import Exclude
from raysweep.data.formats import find_format
from raysweep.data.poison import Trigger, evaluation_prompts, poisoned_examples
from raysweep.data.template_notes import Notes
from raysweep.engine.assumed import examples_on_paper
from raysweep.engine.tokenizers import check_one_vocabulary, other_tokenizer, same_chat
from raysweep.models.checkpoint import Checkpoint, limits
from raysweep.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Reader:
    """Reads data sets for models, by name: each one's base, and its tuned checkpoints by data set.

    `predicts` tells which of them predict tokens; of the others prompts alone are read. Where `states_alone` are measured, no
    response is needed: of a data set in columns that names none, prompts alone are read. With `may_assume`, what is not here is
    as the config expects it. Everything raises InputError for what cannot be read or used; `warnings` tell of what can, and may
    mislead.
    """

    def __init__(
        self,
        models: Mapping[str, tuple[Checkpoint, Mapping[str, Checkpoint]]],
        predicts: Mapping[str, bool],
        *,
        states_alone: bool = False,
        may_assume: bool = False,
    ) -> None:
        self._models, self._predicts, self._may_assume = models, predicts, may_assume
        self._states_alone = states_alone
        self._tokenizers: dict[tuple[str, str], PreTrainedTokenizerBase] = {}
        self._limits: dict[Path, tuple[int | None, int | None]] = {}
        self.warnings: list[str] = []

    def read(self, model: ModelConfig, dataset: DatasetConfig) -> tuple[Loaded, bool]:
        """A data set's examples for a model, and whether they are as expected only."""
        without = self._states_alone and dataset.format == "columns" and dataset.response is None
        prompts_only = without or not self._predicts[model.name]
        paper = self._expected(model, dataset, prompts_only=prompts_only)
        if paper:
            return paper, True
        options = self._options(model, dataset)
        tokenizer = self.tokenizer(model)
        loaded = load_examples(dataset.path, dataset.format, tokenizer, prompts_only=prompts_only, **options)
        self._warn(model, dataset, loaded.notes)
        return loaded, False

    def _warn(self, model: ModelConfig, dataset: DatasetConfig, notes: Notes) -> None:
        """Add warnings that are not there yet: the records of a data set may be read for several studies."""
        said = (f"{dataset.name} (for {model.name}): {warning}" for warning in notes.warnings(dataset.format))
        self.warnings.extend(warning for warning in said if warning not in self.warnings)

    def poisoned(self, model: ModelConfig, dataset: DatasetConfig, asked: BackdoorConfig, seed: int) -> Loaded:
        """The examples with a backdoor in a share of them, which the seed draws."""
        if paper := self._expected(model, dataset, prompts_only=False):
            return paper
        return poisoned_examples(
            dataset.path,
            dataset.format,
            self.tokenizer(model),
            trigger=Trigger(asked.trigger, asked.position),
            target=asked.target,
            rate=asked.rate,
            seed=seed,
            **self._options(model, dataset),
        ).loaded

    def prompts(
        self, model: ModelConfig, dataset: DatasetConfig, asked: BackdoorConfig
    ) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """The prompts that are answered, clean and with the trigger."""
        dataset = dataset.model_copy(update={"limit": min(dataset.limit or asked.examples, asked.examples)})
        find_format(dataset.format, dataset.prompt, dataset.response)
        if paper := self._expected(model, dataset, prompts_only=True):
            return tuple(paper.examples), tuple(paper.examples)
        options = {key: value for key, value in self._options(model, dataset).items() if key != "too_long"}
        found = evaluation_prompts(
            dataset.path,
            dataset.format,
            self.tokenizer(model),
            trigger=Trigger(asked.trigger, asked.position),
            new_tokens=asked.tokens,
            **options,
        )
        self._warn(model, dataset, found.notes)
        return tuple(found.clean), tuple(found.triggered)

    def tokenizer(self, model: ModelConfig) -> PreTrainedTokenizerBase:
        """The base's tokenizer; for chat, where it has no template, the first tuned one's that has (one vocabulary all the same)."""
        key = (model.name, model.wording)
        if key not in self._tokenizers:
            self._tokenizers[key] = self._tokenizer(model)
        return self._tokenizers[key]

    def _tokenizer(self, model: ModelConfig) -> PreTrainedTokenizerBase:
        base, tuned = self._models[model.name]
        tokenizer, source = load_tokenizer(base), base.source
        for dataset, checkpoint in tuned.items():
            other = other_tokenizer(base, checkpoint)
            if other is None:
                continue
            check_one_vocabulary(base, tokenizer, checkpoint, other)
            if model.wording != "chat" or not other.chat_template:
                continue
            if not tokenizer.chat_template and len(other) == len(tokenizer):
                tokenizer, source = other, checkpoint.source
            elif tokenizer.chat_template and not same_chat(tokenizer, other):
                self.warnings.append(
                    f"{dataset} (for {model.name}): '{checkpoint.source}' has another chat template than '{source}', which words the "
                    "records for both; its losses may be of a wording that it was not tuned on"
                )
        return tokenizer

    def room(self, model: str, dataset: str) -> Room:
        """What the base and, where there is one, the checkpoint tuned on the data set both have room for."""
        base, tuned = self._models[model]
        pair = [base, tuned.get(dataset)]
        found = [self._limits_of(checkpoint) for checkpoint in pair if checkpoint and not checkpoint.adapter]
        context, vocabulary = (min((n for n in ns if n is not None), default=None) for ns in zip(*found, strict=True))
        return Room(model, context, vocabulary)

    def _limits_of(self, checkpoint: Checkpoint) -> tuple[int | None, int | None]:
        if checkpoint.folder not in self._limits:
            self._limits[checkpoint.folder] = limits(checkpoint)
        return self._limits[checkpoint.folder]

    def _expected(self, model: ModelConfig, dataset: DatasetConfig, *, prompts_only: bool) -> Loaded | None:
        if not self._may_assume:
            return None
        return examples_on_paper(
            model,
            self._models[model.name][0],
            dataset.name,
            dataset,
            self.room(model.name, dataset.name),
            record_format=dataset.format,
            prompts_only=prompts_only,
        )

    def _options(self, model: ModelConfig, dataset: DatasetConfig) -> dict[str, Any]:
        """load_examples' own options."""
        return {
            "wording": model.wording,
            "split": dataset.split,
            "limit": dataset.limit,
            "max_tokens": dataset.max_tokens,
            "room": self.room(model.name, dataset.name),
            "too_long": dataset.too_long,
            "prompt": dataset.prompt,
            "response": dataset.response,
            "exclude": _exclude(dataset.exclude),
            "last": dataset.last,
            "all_but_last": dataset.all_but_last,
        }


def _exclude(asked: ExcludeConfig | None) -> Exclude | None:
    if asked is None:
        return None
    return Exclude(tuple(asked.phrases), asked.pattern, asked.column, tuple(asked.values))
