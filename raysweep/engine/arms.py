"""The trainings that a config asks for on one model and data set, by what is trained in each. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from raysweep.config_studies import StudiesConfig
from raysweep.config_training import FOUND, FinetuneConfig, Training
from raysweep.numerics.dynamics import how_many
from raysweep.studies.training import Lora, Recipe, Trained, layers_words

Study = Literal["finetune", "adaptation", "backdoor"]


@dataclass(frozen=True)
class Arm:
    """One training: its name in tables, its seed, which layers; `found` where a similarity task says which these are.

    What is attacked untrained, to compare with, is an arm that does not train.
    """

    study: Study
    name: str
    seed: int
    trained: Trained
    found: str | None = None
    trains: bool = True

    @property
    def at(self) -> str:
        """What tells its task from others on the same model and data set; there is one fine-tune, so nothing does."""
        if self.study == "finetune":
            return ""
        return f"{self.name} seed {self.seed}" if self.trains else self.name


def arms_of(studies: StudiesConfig) -> Iterator[tuple[Training, Arm]]:
    """Every training with the section of the config that asks for it, in the order of tables."""
    if studies.finetune:
        yield studies.finetune, _finetune(studies.finetune)
    if studies.adaptation:
        for choice in studies.adaptation.arms:
            for seed in studies.adaptation.seeds:
                yield studies.adaptation, _arm("adaptation", choice, seed, choice, "only")
    if studies.backdoor:
        for name in studies.backdoor.arms:
            for seed in studies.backdoor.seeds:
                if name != "none":
                    yield studies.backdoor, _arm("backdoor", name, seed, name.removeprefix("freeze_"), "freeze")
                elif seed == studies.backdoor.seeds[0]:
                    yield studies.backdoor, Arm("backdoor", name, seed, Trained(), trains=False)


def _finetune(asked: FinetuneConfig) -> Arm:
    if asked.freeze is not None:
        return _arm("finetune", f"freeze {layers_words(asked.freeze)}", asked.seed, asked.freeze, "freeze")
    return _arm("finetune", layers_words(asked.layers), asked.seed, asked.layers, "only")


def _arm(study: Study, name: str, seed: int, choice: str | tuple[int, ...], mode: Literal["only", "freeze"]) -> Arm:
    if choice == "all":
        return Arm(study, name, seed, Trained())
    if isinstance(choice, str):
        return Arm(study, name, seed, Trained(mode), choice if choice in FOUND else None)
    return Arm(study, name, seed, Trained(mode, choice))


def recipe_of(asked: Training, arm: Arm, arguments: dict[str, object], dtype: str) -> Recipe:
    """The recipe of an arm, its layers apart where they are to be found."""
    keep = tuple(asked.along) if isinstance(asked, FinetuneConfig) else ()
    return Recipe(arm.trained, arm.seed, arguments, lora_of(asked), dtype, keep)


def lora_of(asked: Training) -> Lora | None:
    """The low-rank updates that are asked for, if any."""
    if asked.lora is None:
        return None
    targets = asked.lora.target_modules
    return Lora(
        asked.lora.r,
        asked.lora.lora_alpha,
        asked.lora.lora_dropout,
        tuple(targets) if isinstance(targets, list) else targets,
    )


def most_critical_of(asked: Training, n_layers: int) -> int:
    """How many layers are critical."""
    return how_many(n_layers, asked.top)
