"""Examples given to the Python calls: tokenised examples, or records and how to read them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, TypeAlias, TypedDict, cast

from transformers import PreTrainedTokenizerBase

from raysweep import lab
from raysweep.config_renamed import OLD_NAMES, renamed, warn_of_old_name
from raysweep.data.examples import Example, Loaded, Rewrite, Room, load_examples
from raysweep.data.exclusion import Exclude
from raysweep.data.sources import Source, found_format, is_named
from raysweep.errors import InputError, nearest
from raysweep.models.machine_errors import is_machine_error
from raysweep.report.records_words import records_warnings
from raysweep.studies.arguments import optional_number

Examples: TypeAlias = "Sequence[Example] | Loaded | Source"
Tokenizer: TypeAlias = "PreTrainedTokenizerBase | str | os.PathLike[str]"


class RecordOptions(TypedDict, total=False):
    """Which records are used, and how they become texts: options of `load_examples`.

    `template` is the prompt template (chat, plain, llama2, llama3 or phi3); `wording` is its old name.
    """

    template: str
    wording: str
    split: str | None
    limit: int | None
    max_tokens: int | None
    too_long: Literal["refuse", "cut"]
    prompt: str | None
    response: str | None
    exclude: Exclude | Mapping[str, Any] | None
    last: int | None
    all_but_last: int | None
    template_date: str | date | None


class Reading(RecordOptions, total=False):
    """How examples are made of records; without meaning for examples that are tokenised already.

    `format` is that of the first record unless given. `tokenizer` is a tokenizer, or the name or folder of a checkpoint; by
    default that of the models that are given by name.
    """

    tokenizer: Tokenizer | None
    format: str | None


class LoadOptions(RecordOptions, total=False):
    """All options of `load_examples`."""

    prompts_only: bool
    room: Room | None
    rewrite: Rewrite | None


def checked(options: Mapping[str, Any], known: type = Reading) -> dict[str, Any]:
    """Return the options that are set, with new names for old ones, checked numbers and an `Exclude`.

    Raises InputError for an invalid value, and TypeError for an option that does not exist, as any call does.
    """
    names = _option_names(known)
    unknown = next((name for name in options if name not in names), None)
    if unknown is not None:
        raise TypeError(f"unexpected keyword argument '{unknown}'; {nearest(unknown, names - OLD_NAMES.keys())}")
    try:
        found = renamed(options)
    except ValueError as error:
        raise InputError(f"got {error}") from error
    for old in OLD_NAMES.keys() & options.keys():
        warn_of_old_name(old, "keyword argument", stacklevel=3)
    for name in ("limit", "max_tokens", "last", "all_but_last"):
        found[name] = optional_number(name, found.get(name))
    if isinstance(exclude := found.get("exclude"), Mapping):
        found["exclude"] = Exclude(**exclude)
    if found.get("too_long", "refuse") not in ("refuse", "cut"):
        raise InputError(f"too_long is {found['too_long']!r}; give 'refuse' or 'cut'")
    return {name: value for name, value in found.items() if value is not None}


def _option_names(known: type) -> set[str]:
    return {name for kind in known.__mro__ for name in getattr(kind, "__annotations__", ())}


def format_given(source: Source, reading: Mapping[str, Any]) -> str:
    """The format of records, found as on the command line where none is given."""
    if (given := reading.get("format")) is not None:
        return str(given)
    if reading.get("prompt") is not None or reading.get("response") is not None:
        return "columns"
    return found_format(source, split=reading.get("split"))


def tokenizer_given(given: object) -> PreTrainedTokenizerBase:
    """A tokenizer, or that of a checkpoint by its name or folder. Raises InputError for anything else."""
    if isinstance(given, PreTrainedTokenizerBase):
        return given
    if not is_named(given):
        raise InputError(
            f"tokenizer is of type {type(given).__name__}; give a tokenizer of transformers, or the name or folder of a checkpoint"
        )
    from transformers import AutoTokenizer

    source = lab.as_text(given)
    try:
        return AutoTokenizer.from_pretrained(lab.resolve(source), trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # a damaged file raises whatever its reader stumbled over
        if is_machine_error(error):
            raise
        raise InputError(f"tokenizer '{source}' could not be loaded: {error}") from error


Read: TypeAlias = Callable[
    [Source, dict[str, Any], bool], Loaded
]  # of records, options, and whether losses are measured


@dataclass(frozen=True)
class ExampleReader:
    """Turns the argument `examples` into examples of a model that has this `room`.

    With `losses` every example needs a response token. `read` makes examples of records where the models are named, by their own
    tokenizer; others need the option `tokenizer`.
    """

    reading: dict[str, Any]
    room: Room
    losses: bool
    predicts: bool
    read: Read | None = None

    def examples(self, given: Examples, name: str = "examples") -> list[Example]:
        """The examples that were given, or made of the given records. Raises InputError, naming what is wrong."""
        found = _tokenised(given, name)
        if isinstance(found, _Records):
            return self._of_records(found.source, name)
        odd = next((option for option in self.reading if option != "tokenizer"), None)
        if odd is not None:
            raise InputError(f"{odd} applies to records, and {name} are already tokenised; pass it to load_examples")
        for example in found:
            if problem := self._problem(example):
                raise InputError(f"{name}: the example with id {example.id} {problem}")
        return found

    def _of_records(self, source: Source, name: str) -> list[Example]:
        if (tokenizer := self.reading.get("tokenizer")) is not None:
            options = {key: value for key, value in self.reading.items() if key not in ("tokenizer", "format")}
            record_format = format_given(source, self.reading)
            without = not self.losses and record_format == "columns" and "response" not in options
            loaded = load_examples(
                source,
                record_format,
                tokenizer_given(tokenizer),
                room=self.room,
                prompts_only=without or not self.predicts,
                **options,
            )
            warn_of_texts(loaded, record_format, self.reading)
        elif self.read is not None:
            loaded = self.read(source, self.reading, self.losses)
            warn_of_date(loaded, self.reading)
        else:
            what = f"'{source}'" if is_named(source) else "records"
            raise InputError(
                f"{name} is {what}, and a loaded model has no tokenizer; give tokenizer=…, or the result of "
                "load_examples"
            )
        _warn_of_lost(loaded, name)
        return loaded.examples

    def _problem(self, example: Example) -> str | None:
        """What is wrong with an example that somebody made."""
        tokens = example.tokens
        if getattr(tokens, "ndim", None) != 1 or getattr(tokens.dtype, "kind", "") not in "iu":
            return f"has tokens of type {type(tokens).__name__}; give a numpy array of whole numbers [T]"
        if not 1 <= example.n_prompt <= len(tokens):
            return f"has {example.n_prompt} prompt tokens of {len(tokens)}; give 1 or more"
        if self.losses and not example.n_tokens:
            return "has no response token, and the loss is measured on response tokens"
        vocabulary = self.room.vocabulary
        if vocabulary is not None and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            odd = int(tokens.min()) if tokens.min() < 0 else int(tokens.max())
            return f"has the token {odd}, and the model has embeddings for 0 to {vocabulary - 1}; use its own tokenizer"
        return None


def warn_of_texts(loaded: Loaded, record_format: str, reading: Mapping[str, Any]) -> None:
    """Warn of records that the prompt template ignores, changes or cuts."""
    said = [*loaded.source_warnings, *loaded.notes.warnings(record_format)]
    if loaded.n_answer_cut:
        said.append(
            f"{loaded.n_answer_cut} of {len(loaded.examples)} examples lose a part of their answer: the chat template "
            "leaves it out or rewrites it, and the loss covers only the rest"
        )
    for warning in said:
        warnings.warn(warning, stacklevel=2)
    warn_of_date(loaded, reading)


def warn_of_date(loaded: Loaded, reading: Mapping[str, Any]) -> None:
    """Warn if a chat template was given today's date, and will be given another tomorrow."""
    if loaded.template_date is not None and reading.get("template_date") is None:
        warnings.warn(
            f"the chat template reads the clock and gets {loaded.template_date}; pass template_date='{loaded.template_date}' to "
            "get the same texts on another day",
            stacklevel=2,
        )


def _warn_of_lost(loaded: Loaded, name: str) -> None:
    """Warn of records that are not measured, or in part only."""
    n = len(loaded.examples)
    row = {"dataset": name, "model": "this call", "examples": str(n), "left_out": str(loaded.n_unusable)}
    row |= {"cut": str(loaded.n_cut), "blank_responses": str(loaded.n_blank)}
    for warning in records_warnings([row]):
        warnings.warn(warning, stacklevel=2)


@dataclass(frozen=True)
class _Records:
    """Records that are still to be tokenised."""

    source: Source


def _tokenised(given: object, name: str) -> list[Example] | _Records:
    """Examples as a list, or else what is taken for a source of records."""
    if isinstance(given, Loaded):
        return list(given.examples)
    if isinstance(given, Example):
        raise InputError(f"{name} is one Example; give a list of them")
    if is_named(given) or hasattr(given, "columns") or hasattr(given, "column_names") or isinstance(given, Mapping):
        return _Records(cast("Source", given))
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise InputError(f"{name} is of type {type(given).__name__}; give a list of examples, or records")
    items = list(given)
    if not items:
        raise InputError(f"{name} is empty; give at least one example")
    if not any(isinstance(item, Example) for item in items):
        return _Records(items)
    for place, item in enumerate(items):
        if not isinstance(item, Example):
            raise InputError(
                f"{name}[{place}] is of type {type(item).__name__}, and others are Examples; give only Examples"
            )
    return items
