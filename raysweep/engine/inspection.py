"""Inspection: everything a plan needs to know of the world, read once, before anything runs.

Checkpoints are described and compared, tokenizers loaded, records read, worded and tokenised; bad input is refused here.
What to do with it is plan.py's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version

from raysweep.config import Config, ModelConfig
from raysweep.config_removal import RemovalConfig
from raysweep.config_stop import StopConfig
from raysweep.config_substitution import GenerationConfig
from raysweep.data.examples import Example, Loaded, Room
from raysweep.engine.adapters import inspect_adapters
from raysweep.engine.asked import asked_changes, stop_rule
from raysweep.engine.assumed import assumptions, checkpoint_on_paper
from raysweep.engine.facts import Cell, Facts, ModelFacts
from raysweep.engine.measuring import Measure, measure_here
from raysweep.engine.reader import Reader
from raysweep.engine.residency import WorkerMemory, choose_residency, find_memory
from raysweep.engine.shared import shared_by
from raysweep.engine.steps import StepModel
from raysweep.engine.template_dates import unused_dates
from raysweep.engine.text_facts import with_texts, writes_text
from raysweep.engine.training_facts import find_trainings, trained_on
from raysweep.errors import InputError
from raysweep.models.blocks import find_blocks
from raysweep.models.checkpoint import Checkpoint, begin_reading, describe, predicts_tokens
from raysweep.models.digest_cache import user_digest_cache
from raysweep.models.expected_tensors import check_tensors, refuse_empty
from raysweep.models.loading import resolve_dtype, skeleton
from raysweep.models.pair import check_pair
from raysweep.models.parts import parts_of
from raysweep.models.quantisation import check_quantised
from raysweep.models.same import same_in_checkpoints
from raysweep.models.settings import settings_warning
from raysweep.models.weight_reader import WeightReader
from raysweep.studies.stopping import check_rule, in_random_order

_FEWEST_TO_COMPARE = 2


@cache
def libraries() -> Mapping[str, str]:
    """Versions of the libraries that decide figures. Not to be changed."""
    return {
        name: version(name) for name in ("raysweep", "torch", "transformers", "tokenizers", "peft", "numpy", "scipy")
    }


def resolve_device(asked: str) -> str:
    """The device to compute on: `auto` is a CUDA device where there is one, else the CPU.

    Raises InputError for a device that this machine does not have.
    """
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = asked.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"execution.device asks for {asked}, and this machine has {torch.cuda.device_count()} CUDA devices; use auto or cpu"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("execution.device asks for mps, which this machine does not have; use auto or cpu")
    return asked


@contextlib.contextmanager
def _unreadable_told() -> Iterator[None]:
    """What the system refuses to read is bad input like any other."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename or 'a file'} cannot be read: {error.strerror or error}") from error


@_unreadable_told()
def inspect(
    config: Config,
    find_device: Callable[[str], str] = resolve_device,
    *,
    measure: Measure = measure_here,
    may_assume: bool = False,
    template_dates: Mapping[str, str] | None = None,
) -> Facts:
    """Read and check everything the config names. Raises InputError for the first thing that cannot be used.

    `find_device` says which device `execution.device` means where the work will be done, and `measure` runs what is to be
    measured there; by default, on this machine. With `may_assume`, for plans, what is not here is described by `architecture`
    and `expected` where the config has them.
    `template_dates` are those recorded by an earlier run, by model, for chat templates that read the clock.
    """
    device = find_device(config.execution.device)
    memory = find_memory(config, device, measure)
    models, warnings = inspect_models(config, device, memory, may_assume=may_assume)
    reader = Reader(
        {name: (found.base, found.tuned) for name, found in models.items()},
        {name: found.predicts for name, found in models.items()},
        states_alone=not (config.studies.substitution or config.studies.removal or config.studies.trainings),
        may_assume=may_assume,
        template_dates=template_dates,
    )
    return replace(_inspect_data(config, device, models, reader, warnings), memory=memory)


@_unreadable_told()
def inspect_models(
    config: Config, device: str, memory: WorkerMemory | None = None, *, may_assume: bool = False
) -> tuple[dict[str, ModelFacts], Sequence[str]]:
    """Describe and check the config's checkpoints, as `inspect` does, without reading its data sets.

    `memory` is a worker's; by default, what this process may use. Returns what was found, by model, and warnings.
    """
    memory = memory or find_memory(config, device, measure_here)
    with WeightReader(user_digest_cache()) as reader:
        for model in config.models:
            for source in (model.base, *model.tuned.values()):
                begin_reading(source, reader)
        return _inspect_models(config, device, memory, reader, may_assume=may_assume)


def _inspect_models(
    config: Config, device: str, memory: WorkerMemory, reader: WeightReader, *, may_assume: bool
) -> tuple[dict[str, ModelFacts], Sequence[str]]:
    described: dict[tuple[str, str | None], Checkpoint] = {}
    noted: list[str] = []
    checked: set[str] = set()

    def described_once(model: ModelConfig, source: str, base: Checkpoint | None = None) -> Checkpoint:
        key = (source, model.architecture)
        if key not in described:
            paper = checkpoint_on_paper(model, source, base) if may_assume else None
            described[key] = paper or describe(source, reader=reader)
            check_quantised(described[key], device)
            refuse_empty(described[key])
        return described[key]

    models: dict[str, ModelFacts] = {}
    for model in config.models:
        base = described_once(model, model.base)
        if base.adapter:
            raise InputError(f"base '{base.source}' is a PEFT adapter; give the full checkpoint that it was trained on")
        tuned = {name: described_once(model, source, base) for name, source in model.tuned.items()}
        for name, checkpoint in tuned.items():
            found = check_pair(base, checkpoint)
            if text := settings_warning(found, f"{name} (for {model.name}): base and tuned"):
                noted.append(text)
        for checkpoint in (base, *tuned.values()):
            if checkpoint.fingerprint not in checked:
                checked.add(checkpoint.fingerprint)
                noted += _passed_over(checkpoint)
        tuned, warned = inspect_adapters(model.name, base, tuned)
        noted += warned
        predicts = predicts_tokens(base)
        will_be = trained_on(config, model)
        if (tuned or will_be) and config.studies.substitution and not predicts:
            raise InputError(
                f"model '{model.name}': checkpoint '{base.source}' does not predict the next token (it is an encoder, or "
                "lacks its head), and substitution measures the loss of a response's tokens; remove its `tuned` and "
                "run only similarity"
            )
        if config.studies.removal:
            _check_removal(config.studies.removal, model.name, base, predicts)
        same = {name: same_in_checkpoints(base, checkpoint, reader.cache) for name, checkpoint in tuned.items()}
        dtype = resolve_dtype(model.dtype, base.dtype, device)
        pairs = [*tuned.values(), *([base] if will_be else [])]  # what will be made is of its base's size
        residency = choose_residency(config, model.name, base, pairs, dtype, memory)
        model_facts = ModelFacts(base, tuned, dtype, predicts, same, residency)
        models[model.name], said = with_texts(model_facts) if writes_text(config.studies) else (model_facts, [])
        noted += said
        if (tuned or will_be) and config.studies.substitution:
            asked_changes(config.studies.substitution, base.n_layers, f" of model '{model.name}'")
            if rule := stop_rule(config.studies.substitution):
                check_rule(rule, base.n_layers, f" of model '{model.name}'")
            if config.studies.substitution.modules:
                for block in find_blocks(skeleton(base)):
                    parts_of(block)
    return models, noted


def _inspect_data(
    config: Config, device: str, models: Mapping[str, ModelFacts], reader: Reader, noted: Sequence[str]
) -> Facts:
    """Read and check the config's data sets for its models."""
    cells: dict[tuple[str, str], Cell] = {}
    for model in config.models:
        removal = config.studies.removal
        of_base = bool(removal and removal.of == "base")
        tuned_on = {*model.tuned, *trained_on(config, model)}
        all_of_them, trains = bool(config.studies.pooling) or of_base, bool(config.studies.trainings)
        if isinstance(model, StepModel):
            tuned_on, all_of_them, trains = set(trained_on(config, model)), False, False
        wanted = [d for d in config.datasets if all_of_them or d.name in tuned_on or (trains and d.train)]
        for dataset in wanted:
            room = reader.room(model.name, dataset.name)
            loaded, on_paper = reader.read(model, dataset)
            if config.studies.pooling and len(loaded.examples) < _FEWEST_TO_COMPARE:
                study = "similarity" if config.studies.similarity else "spectrum"
                raise InputError(
                    f"data set '{dataset.name}' has one usable example for '{model.name}', and {study} compares "
                    f"examples; give {_FEWEST_TO_COMPARE} or more, or remove studies.{study}"
                )
            if config.studies.substitution and dataset.name in tuned_on:
                asked = config.studies.substitution.generate
                _check_generation("substitution.generate", asked, loaded.examples, room, dataset.name)
            if removal and (of_base or dataset.name in tuned_on):
                _check_components(removal, loaded.examples, dataset.name)
                _check_generation("removal", removal, loaded.examples, room, dataset.name)
            stop = config.studies.substitution.stop if config.studies.substitution else None
            cell = _cell(model.name, dataset.name, loaded, config.execution.chunk, stop)
            cells[model.name, dataset.name] = replace(cell, on_paper=on_paper)
    bases = {name: found.base for name, found in models.items()}
    trainings = find_trainings(config, bases, {name: found.predicts for name, found in models.items()}, device, reader)
    assumed = _assumed(config, models, cells)
    void = [shared.sentence for shared in shared_by(models) if shared.sentence] if config.studies.substitution else []
    warnings = (*void, *noted, *reader.warnings, *unused_dates(config, reader.read_for, reader.template_dates))
    return Facts(models, cells, device, libraries(), trainings, assumed, warnings, reader.template_dates)


def _passed_over(checkpoint: Checkpoint) -> list[str]:
    """A warning about tensors of the checkpoint that the model has no use for. Raises InputError for what it needs and lacks."""
    names = check_tensors(checkpoint)
    if not names:
        return []
    return [
        f"checkpoint '{checkpoint.source}' has {len(names)} tensors that belong to no layer, embedding or head, {names[0]} among "
        "them; they are ignored"
    ]


def _assumed(
    config: Config, models: Mapping[str, ModelFacts], cells: Mapping[tuple[str, str], Cell]
) -> tuple[str, ...]:
    expected = {d.name: d.expected for d in config.datasets if d.expected is not None}
    on_paper = {cell.dataset for cell in cells.values() if cell.on_paper}
    checkpoints = {name: [model.base, *model.tuned.values()] for name, model in models.items()}
    return assumptions(checkpoints, {name: told for name, told in expected.items() if name in on_paper})


def _check_removal(asked: RemovalConfig, name: str, base: Checkpoint, predicts: bool) -> None:
    """Refuse what cannot be removed in a model, whatever the data."""
    if not predicts:
        raise InputError(
            f"model '{name}': checkpoint '{base.source}' does not predict the next token (it is an encoder, or lacks its "
            "head), and removal compares generated text; remove studies.removal"
        )
    far = [layer for layer in asked.layers if isinstance(layer, int) and layer >= base.n_layers]
    if far:
        raise InputError(
            f"studies.removal.layers has layer {far[0]}, which is not among the {base.n_layers} decoder layers of model "
            f"'{name}'; layers count from 0"
        )
    if asked.top is not None and asked.top > base.n_layers:
        raise InputError(
            f"studies.removal.top asks for {asked.top} critical layers, and model '{name}' has only {base.n_layers}"
        )


def _check_components(asked: RemovalConfig, examples: list[Example], dataset: str) -> None:
    """Refuse components that the states of so many examples cannot have."""
    most, last = len(examples) - 1, max(max(chosen) for chosen in asked.chosen)
    if last >= most:
        raise InputError(
            f"studies.removal.components asks for component {last} (counted from 0), and the states of {len(examples)} examples of "
            f"'{dataset}' have at most {most}; set fewer components, or give more examples"
        )


def _check_generation(
    where: str, asked: GenerationConfig | RemovalConfig | None, examples: list[Example], room: Room, dataset: str
) -> None:
    """Refuse text that would not fit the context: positions beyond it are an error in some models and nonsense in others."""
    if asked is None or room.context is None:
        return
    longest = max(examples[: asked.examples], key=lambda example: example.n_prompt)
    if longest.n_prompt + asked.tokens > room.context:
        raise InputError(
            f"studies.{where} asks for {asked.tokens} tokens after each prompt; record {longest.id} of "
            f"'{dataset}' (counted from 0) has a prompt of {longest.n_prompt}, and the context of '{room.model}' is "
            f"{room.context}. Set tokens to {room.context - longest.n_prompt} or less, or use fewer examples"
        )


def _cell(model: str, dataset: str, loaded: Loaded, size: int, stop: StopConfig | None) -> Cell:
    """Chunks are runs of `size` records of the source, so an unusable record shifts no other example's chunk."""
    chunks: dict[int, list[Example]] = {}
    for example in loaded.examples:
        chunks.setdefault(example.id // size, []).append(example)
    runs = tuple(tuple(chunks[i]) for i in sorted(chunks))
    drawn: list[Example] = in_random_order(loaded.examples, stop.seed) if stop else []
    in_turn = tuple(tuple(drawn[i : i + size]) for i in range(0, len(drawn), size))
    return Cell(
        model,
        dataset,
        runs,
        loaded.n_cut,
        loaded.n_unusable,
        loaded.n_excluded,
        in_turn,
        n_blank=loaded.n_blank,
        n_answer_cut=loaded.n_answer_cut,
    )
