"""Models given to the Python calls, converted for the engine.

Named models are described, checked and loaded as on the command line. Loaded models are checked, used, and restored to their
earlier state.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from raysweep import lab
from raysweep.config import Config, ModelConfig, parse_config
from raysweep.config_datasets import DatasetConfig
from raysweep.data.examples import Example, Loaded, Room
from raysweep.data.sources import Source, is_named
from raysweep.engine.facts import ModelFacts
from raysweep.engine.inspection import inspect_models, resolve_device
from raysweep.engine.reader import Reader
from raysweep.models.adapter import Adapter
from raysweep.models.borrowed import borrowed
from raysweep.models.checkpoint import Checkpoint, describe, find
from raysweep.models.given import check_alike, check_distinct, plain_model
from raysweep.models.loading import load_model
from raysweep.models.merged_copy import merge_onto_copy
from raysweep.models.settings import differences, settings_warning
from raysweep.models.stream import StreamedModel
from raysweep.notebook_examples import ExampleReader, Examples, checked, format_given
from raysweep.recipes import name_of
from raysweep.studies.interventions import Change
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Model: TypeAlias = "PreTrainedModel | Adapter | str | os.PathLike[str]"

ACCEPTED = "a loaded transformers model, a raysweep.Adapter, or the name or folder of a checkpoint"
_DATASET = "examples"  # the name of the one data set in a config made for a call


@dataclass(frozen=True)
class Named:
    """A base model, and one tuned from it where two are named, described and checked as the command line does it."""

    model: ModelConfig
    facts: ModelFacts
    device: str

    @property
    def tuned(self) -> Checkpoint | None:
        """The checkpoint of the tuned model."""
        return self.facts.tuned.get(_DATASET)

    def read(self, source: Source, reading: dict[str, Any], losses: bool) -> Loaded:
        """Examples of records, with the checkpoints' tokenizer and limits; problems are warnings."""
        name = self.model.name
        reader = Reader(
            {name: (self.facts.base, self.facts.tuned)}, {name: self.facts.predicts}, states_alone=not losses
        )
        own = ("template", "template_date")
        options = {key: value for key, value in reading.items() if key not in own}
        dataset = DatasetConfig.model_construct(
            name=_DATASET, **{**options, "path": source, "format": format_given(source, reading)}
        )
        if is_named(source):
            dataset = dataset.model_copy(update={"path": lab.as_text(source)})
        asked = {key: str(value) for key, value in reading.items() if key in own}
        loaded, _ = reader.read(self.model.model_copy(update=asked), dataset)
        for warning in reader.warnings:
            warnings.warn(warning, stacklevel=2)
        return loaded

    def room(self) -> Room:
        """What the models have room for."""
        name = self.model.name
        return Reader({name: (self.facts.base, self.facts.tuned)}, {name: self.facts.predicts}).room(name, _DATASET)

    def base_model(self) -> Adapter | StreamedModel:
        """The base, loaded whole or with its layers on disk."""
        facts = self.facts
        if facts.residency.mode == "stream":
            return StreamedModel(facts.base, dtype=facts.dtype, device=self.device)
        return Adapter(load_model(facts.base, dtype=facts.dtype, device=self.device))

    def pair(self) -> Pair:
        """Both models, loaded whole or with their layers on disk."""
        facts, tuned = self.facts, self.tuned
        assert tuned is not None, "there is one where a pair is named"
        if facts.residency.mode == "stream":
            models = [StreamedModel(each, dtype=facts.dtype, device=self.device) for each in (facts.base, tuned)]
            return StreamedPair.of(models[0], models[1], facts.residency.memory)
        base, other = (
            Adapter(load_model(each, dtype=facts.dtype, device=self.device, base=facts.base))
            for each in (facts.base, tuned)
        )
        return Pair(base, other)


def named(base: object, tuned: object = None) -> Named:
    """Describe and check named checkpoints. Raises InputError for what the command line refuses before it runs."""
    text = _text(base)
    name = name_of(text)
    model = {"name": name, "base": text}
    studies: dict[str, Any] = {"similarity": {}}
    if tuned is not None:
        model |= {"tuned": {_DATASET: _text(tuned)}}  # type: ignore[dict-item]
        studies = {"substitution": {"widths": [1]}}
    config: Config = parse_config(
        {
            "name": name,
            "models": [model],
            "datasets": [{"name": _DATASET, "path": "unused", "format": "columns", "prompt": "a", "response": "b"}],
            "studies": studies,
            "storage": "unused",
        },
        where="arguments",
    )
    device = resolve_device(config.execution.device)
    models, said = inspect_models(config, device)
    for warning in said:
        warnings.warn(warning, stacklevel=5)  # of whoever called rs.sweep and the like
    return Named(config.models[0], models[name], device)


def _text(given: object) -> str:
    return lab.as_text(cast("str | os.PathLike[str]", given))


# --- opening ------------------------------------------------------------------------------------------------------


@contextmanager
def opened_model(
    model: Model, reading: Mapping[str, Any], check: Callable[[int], None], read: Callable[[ExampleReader], Any]
) -> Iterator[tuple[Adapter | StreamedModel, Any]]:
    """A model that can be captured, and what `read` makes of the reader of its examples, while the context lasts.

    `check` is given the number of layers before anything is loaded. A loaded model is afterwards as it was.
    """
    options = checked(reading)
    if is_named(model):
        found = named(model)
        check(found.facts.base.n_layers)
        examples = read(ExampleReader(options, found.room(), False, found.facts.predicts, found.read))
        yield found.base_model(), examples
        return
    plain = _loaded(model, "model")
    with borrowed(plain):
        adapter = model if isinstance(model, Adapter) else Adapter(plain)
        check(adapter.n_layers)
        yield adapter, read(ExampleReader(options, _room(plain, "the model"), False, adapter.predicts))


@contextmanager
def opened_pair(
    base: Model,
    tuned: Model,
    examples: Examples,
    reading: Mapping[str, Any],
    changes: Callable[[int], list[Change]],
) -> Iterator[tuple[Pair, list[Example], list[Change]]]:
    """A pair, its examples and the changes that `changes` gives for its number of layers, while the context lasts.

    Loaded models are afterwards as they were. Raises InputError for models that are no pair, that share weights, or that
    differ in dtype or device, and for examples that cannot be measured.
    """
    options = checked(reading)
    if is_named(base) and is_named(tuned):
        found = named(base, tuned)
        wanted = changes(found.facts.base.n_layers)
        chosen = ExampleReader(options, found.room(), True, True, found.read).examples(examples)
        yield found.pair(), chosen, wanted
        return
    check_distinct(_inside(base), _inside(tuned))
    models = {name: _loaded(given, name) for name, given in (("base", base), ("tuned", tuned)) if not is_named(given)}
    for name, given in (("base", base), ("tuned", tuned)):
        if is_named(given):
            (other,) = models.values()
            models[name] = _like(other, lab.as_text(given), is_tuned=name == "tuned")
            options = {"tokenizer": given} | options
    check_alike(models["base"], models["tuned"])
    with borrowed(models["base"], models["tuned"]):
        sides = (
            given if isinstance(given, Adapter) else Adapter(models[name])
            for name, given in (("base", base), ("tuned", tuned))
        )
        pair = Pair(*sides)
        found_apart = differences(pair.base.model.config, pair.tuned.model.config)
        if warning := settings_warning(found_apart, "base and tuned"):
            warnings.warn(warning, stacklevel=5)
        wanted = changes(pair.n_layers)
        chosen = ExampleReader(options, _room(models["tuned"], "tuned"), True, True).examples(examples)
        yield pair, chosen, wanted


def _inside(given: object) -> object:
    return given.model if isinstance(given, Adapter) else given


def _loaded(given: object, name: str) -> PreTrainedModel:
    return plain_model(_inside(given), name, ACCEPTED)


def _room(model: PreTrainedModel, name: str) -> Room:
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    return Room(name, context if isinstance(context, int) and context > 0 else None, rows)


def _like(model: PreTrainedModel, source: str, *, is_tuned: bool) -> PreTrainedModel:
    """A named checkpoint, loaded in the dtype and on the devices of the other model of its pair.

    A PEFT adapter is merged onto a copy of the other model, which is the base then.
    """
    if is_tuned and (find(source) / "adapter_config.json").exists():
        with borrowed(model):
            merged, said = merge_onto_copy(describe(source), model)
        for warning in said:
            warnings.warn(warning, stacklevel=6)
        return merged
    dtype = str(model.dtype).removeprefix("torch.")
    spread = getattr(model, "hf_device_map", None)
    return load_model(named(source).facts.base, dtype=dtype, device=str(model.device), device_map=spread)
