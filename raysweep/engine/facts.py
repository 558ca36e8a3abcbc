"""What a plan knows of the world, as values: models, their cells with examples, and what was assumed. inspection.py finds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raysweep.data.examples import Example
from raysweep.engine.calls import Choice
from raysweep.engine.residency import RESIDENT, UNKNOWN, Residency, WorkerMemory
from raysweep.engine.training_plan import Trainings
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.same import NOTHING, Same
from raysweep.models.text_settings import EndsOfPair


@dataclass(frozen=True)
class Cell:
    """One model on one data set: its examples, cut into chunks in their source's order.

    `drawn` are the chunks that a sweep which may stop early takes: the same examples in random order. On paper they were not
    read, and are as expected.
    """

    model: str
    dataset: str
    chunks: tuple[tuple[Example, ...], ...]
    n_cut: int
    n_unusable: int
    n_excluded: int
    drawn: tuple[tuple[Example, ...], ...] = ()
    on_paper: bool = False
    n_blank: int = 0
    n_answer_cut: int = 0

    @property
    def swept(self) -> tuple[tuple[Example, ...], ...]:
        """The chunks of a sweep, in the order in which it takes them."""
        return self.drawn or self.chunks

    @property
    def examples(self) -> list[Example]:
        """All examples, in order."""
        return [example for chunk in self.chunks for example in chunk]


@dataclass(frozen=True)
class Texts:
    """What decides a model's texts besides weights and arithmetic: the tokens that end them, and the tokenizer that decodes.

    `base` and `tuned` (by data set) have the token ids of each checkpoint; one that has none here ends as the base does.
    `decoder` identifies the tokenizer.
    """

    decoder: str = ""
    base: tuple[int, ...] = ()
    tuned: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def ends(self, dataset: str) -> EndsOfPair:
        """The end tokens of the base, and of the checkpoint tuned on a data set."""
        return EndsOfPair(self.base, self.tuned.get(dataset, self.base))

    def identity(self, ends: tuple[int, ...]) -> dict[str, Any]:
        """The part of a key that tells texts with these end tokens from others."""
        return {"ends": list(ends), "decoder": self.decoder}


@dataclass(frozen=True)
class ModelFacts:
    """A model's checkpoints, the dtype it is computed in, and whether it predicts the next token (an encoder does not).

    `same` tells by data set what base and tuned have in common, weight for weight. `promised` are the data sets whose tuned
    checkpoint the run itself makes; `measured` are checkpoints whose states are compared in place of the base's, by data set.
    `texts` is found where the config asks for text. `choices` tell which layers are trained in the promised checkpoints.
    """

    base: Checkpoint
    tuned: Mapping[str, Checkpoint]
    dtype: str
    predicts: bool = True
    same: Mapping[str, Same] = field(default_factory=dict)
    residency: Residency = RESIDENT
    promised: frozenset[str] = frozenset()
    measured: Mapping[str, Checkpoint] = field(default_factory=dict)
    texts: Texts = field(default_factory=Texts)
    choices: Mapping[str, Choice] = field(default_factory=dict)

    def untrained(self, dataset: str) -> frozenset[int]:
        """The layers that the checkpoint tuned on a data set is known to have in common with the base, before anything runs."""
        if (choice := self.choices.get(dataset)) is None:
            return self.same.get(dataset, NOTHING).layers
        return frozenset() if choice.found else choice.untrained(self.base.n_layers)

    def compared(self, dataset: str) -> Checkpoint:
        """The checkpoint whose states are captured on a data set."""
        return self.measured.get(dataset, self.base)


@dataclass(frozen=True)
class Facts:
    """What inspection found, what a plan assumes of what is not here, and what may mislead, in words.

    `memory` is what a worker may use. `template_dates` has, by model, the date that a chat template was given which reads the clock.
    """

    models: Mapping[str, ModelFacts]
    cells: Mapping[tuple[str, str], Cell]
    device: str
    libraries: Mapping[str, str]
    trainings: Trainings = field(default_factory=Trainings)
    assumed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    template_dates: Mapping[str, str] = field(default_factory=dict)
    memory: WorkerMemory = UNKNOWN
