"""Reading a model's records at inspection: as they are, as a plan expects them, or with a backdoor's trigger in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.config import ModelConfig
from raysweep.config_backdoor import BackdoorConfig
from raysweep.config_datasets import DatasetConfig
from raysweep.config_exclude import ExcludeConfig
from raysweep.data.examples import Example, Loaded, Room, load_examples
from raysweep.data.exclusion import Exclude
from raysweep.data.formats import Format, Record, find_format
from raysweep.data.poison import Trigger, evaluation_prompts, poisoned_examples
from raysweep.data.template_date import TemplateClock, today
from raysweep.data.wording import find_wording
from raysweep.engine.assumed import examples_on_paper
from raysweep.engine.chat import Chat, borrow_chat, difference_texts
from raysweep.engine.steps import StepModel
from raysweep.engine.tokenizers import check_one_vocabulary, compare, other_tokenizer, template_of
from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint, limits
from raysweep.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Reader:
    """Reads data sets for models, by name: each one's base, and its tuned checkpoints by data set.

    `predicts` tells which of them predict tokens; of the others prompts alone are read. Where `states_alone` are measured, no
    response is needed: of a data set in columns that names none, prompts alone are read. With `may_assume`, what is not here is
    as the config expects it. Everything raises InputError for what cannot be read or used; `warnings` tell of what can, and may
    mislead. A chat template that reads the clock is given its model's date: the config's, that of `template_dates` (by model),
    or today's; the attribute `template_dates` has the dates of those that did read it.
    """

    def __init__(
        self,
        models: Mapping[str, tuple[Checkpoint, Mapping[str, Checkpoint]]],
        predicts: Mapping[str, bool],
        *,
        states_alone: bool = False,
        may_assume: bool = False,
        template_dates: Mapping[str, str] | None = None,
    ) -> None:
        self._models, self._predicts, self._may_assume = models, predicts, may_assume
        self._states_alone = states_alone
        self._chats: dict[tuple[str, str], Chat] = {}
        self._others: dict[tuple[str, str], PreTrainedTokenizerBase | None] = {}
        self._limits: dict[Path, tuple[int | None, int | None]] = {}
        self._recorded, self._today = template_dates or {}, today()
        self._read: set[tuple[str, str]] = set()
        self.template_dates: dict[str, str] = {}
        self.warnings: list[str] = []

    def read(self, model: ModelConfig, dataset: DatasetConfig) -> tuple[Loaded, bool]:
        """A data set's examples for a model, and whether they are as expected only."""
        without = self._states_alone and dataset.format == "columns" and dataset.response is None
        prompts_only = without or not self._predicts[model.name]
        paper = self._expected(model, dataset, prompts_only=prompts_only)
        if paper:
            return paper, True
        chat = self._chat(model)
        other = self._others.get((model.name, dataset.name))
        records: dict[int, tuple[Record, Format]] = {}

        def keep(number: int, record: Record, record_format: Format) -> tuple[Record, Format]:
            records[number] = (record, record_format)
            return record, record_format

        options = {**self._options(model, dataset), "prompts_only": prompts_only}
        options |= {"rewrite": keep} if other or chat.unused else {}
        try:
            loaded = load_examples(dataset.path, dataset.format, chat.tokenizer, **options)
        except InputError as error:
            raise InputError(f"{error}{chat.hint}") from error
        if loaded.template_date is not None:
            self.template_dates[_own_name(model)] = loaded.template_date
        self._warn(model, dataset, [*loaded.source_warnings, *loaded.notes.warnings(dataset.format)])
        if (_own_name(model), dataset.name) not in self._read:  # records of the same name to train on are worded alike
            self._read.add((_own_name(model), dataset.name))
            self._warn(model, dataset, chat.notes(loaded.examples))
            self._warn(model, dataset, self._differences(model, dataset, loaded.examples, records, prompts_only))
        return loaded, False

    def _differences(
        self,
        model: ModelConfig,
        dataset: DatasetConfig,
        examples: list[Example],
        records: Mapping[int, tuple[Record, Format]],
        prompts_only: bool,
    ) -> Iterator[str]:
        """How the tokenizers of the pair that are not used would read the examples, in words."""
        base, tuned = self._models[model.name]
        chat, other = self._chat(model), self._others.get((model.name, dataset.name))
        unused = []
        if chat.unused is not None and (plain := chat.without_added(examples)):
            unused.append((base, chat.unused, plain))
        if other is not None and other is not chat.tokenizer:
            unused.append((tuned[dataset.name], other, examples))
        wording = find_wording(model.template, TemplateClock(self._date(model)))
        for checkpoint, tokenizer, read in unused:
            pair = (chat.tokenizer, tokenizer)
            found = compare(read, records, wording, pair, prompts_only=prompts_only)
            yield from difference_texts(found, chat.source, checkpoint.source)

    def _warn(self, model: ModelConfig, dataset: DatasetConfig, warnings: Iterable[str]) -> None:
        """Add warnings that are not there yet: the records of a data set may be read for several studies."""
        said = (f"{dataset.name} (for {model.name}): {warning}" for warning in warnings)
        self.warnings.extend(warning for warning in said if warning not in self.warnings)

    @property
    def read_for(self) -> set[str]:
        """The models whose texts were made so far."""
        return {model for model, _ in self._read}

    def poisoned(self, model: ModelConfig, dataset: DatasetConfig, asked: BackdoorConfig, seed: int) -> Loaded:
        """The examples with a backdoor in a share of them, which the seed draws."""
        if paper := self._expected(model, dataset, prompts_only=False):
            return paper
        return poisoned_examples(
            dataset.path,
            dataset.format,
            self._chat(model).tokenizer,
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
            self._chat(model).tokenizer,
            trigger=Trigger(asked.trigger, asked.position),
            new_tokens=asked.tokens,
            **options,
        )
        self._warn(model, dataset, found.notes.warnings(dataset.format))
        return tuple(found.clean), tuple(found.triggered)

    def _chat(self, model: ModelConfig) -> Chat:
        """What words and splits a model's records."""
        key = (model.name, model.template)
        if key not in self._chats:
            self._chats[key] = self._find_chat(model)
        return self._chats[key]

    def _find_chat(self, model: ModelConfig) -> Chat:
        base, tuned = self._models[model.name]
        tokenizer = load_tokenizer(base)
        for dataset, checkpoint in tuned.items():
            other = self._others[model.name, dataset] = other_tokenizer(base, checkpoint)
            if other is not None:
                check_one_vocabulary(base, tokenizer, checkpoint, other)
        if model.template != "chat" or tokenizer.chat_template:
            return Chat(tokenizer, base.source)
        others = {checkpoint.source: self._others[model.name, dataset] for dataset, checkpoint in tuned.items()}
        return borrow_chat(tokenizer, base, others, {c.source: template_of(c) for c in tuned.values()})

    def room(self, model: str, dataset: str) -> Room:
        """What the base and, where there is one, the checkpoint tuned on the data set both have room for."""
        base, tuned = self._models[model]
        pair = [base, tuned.get(dataset)]
        found = [self._limits_of(checkpoint) for checkpoint in pair if checkpoint and not checkpoint.adapter]
        context, vocabulary = (min((n for n in ns if n is not None), default=None) for ns in zip(*found, strict=True))
        return Room(model, context, vocabulary)

    def _date(self, model: ModelConfig) -> str:
        """The date for a chat template that reads the clock: the config's, the run folder's, or today's."""
        return model.template_date or self._recorded.get(_own_name(model), self._today)

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
            "template": model.template,
            "template_date": self._date(model),
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


def _own_name(model: ModelConfig) -> str:
    """The model's name; a checkpoint along a fine-tuning is worded as the model that is fine-tuned."""
    return model.of if isinstance(model, StepModel) else model.name


def _exclude(asked: ExcludeConfig | None) -> Exclude | None:
    if asked is None:
        return None
    return Exclude(tuple(asked.phrases), asked.pattern, asked.column, tuple(asked.values))
