"""The tasks of trainings, their keys, and the checkpoints that they will make. Pure: no I/O, nothing loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from raysweep.config import Config
from raysweep.config_backdoor import judgings
from raysweep.config_training import Training
from raysweep.data.examples import Example
from raysweep.engine.arms import Arm, arms_of, most_critical_of
from raysweep.engine.graph import Kind, Task
from raysweep.engine.keys import TRAINING, releases
from raysweep.fingerprint import LENGTH, fingerprint
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.sizes import SIZES

_ASKING = {"api_key_env", "per_minute", "attempts", "timeout", "concurrency"}  # of an endpoint: it answers the same
KINDS: Mapping[str, Kind] = {"finetune": "finetune", "adaptation": "adapt", "backdoor": "backdoor"}
# Arguments that decide what is told of a training and not what it makes.
_TOLD = (
    "report_to",
    "eval_",
    "logging_",
    "save_",
    "per_device_eval",
    "dataloader_num",
    "dataloader_pin",
    "log_level",
    "run_name",
)


@dataclass(frozen=True)
class Trainings:
    """What inspection found for trainings: by model and data set the records, and by study the trainer's arguments, checked.

    `poisoned` has by model and data set, and seed, the records with a backdoor among them, `prompts` those that are answered, clean
    and triggered. `dtypes` are those that weights have while they are trained, by study and model; `libraries` those that decide figures.
    `unreached` has by model the layers in which the fine-tune's low-rank updates have no place.
    """

    examples: Mapping[tuple[str, str], tuple[Example, ...]] = field(default_factory=dict)
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dtypes: Mapping[tuple[str, str], str] = field(default_factory=dict)
    n_excluded: Mapping[tuple[str, str], int] = field(default_factory=dict)
    poisoned: Mapping[tuple[tuple[str, str], int], tuple[Example, ...]] = field(default_factory=dict)
    prompts: Mapping[tuple[str, str], tuple[tuple[Example, ...], tuple[Example, ...]]] = field(default_factory=dict)
    unreached: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def of(self, cell: tuple[str, str], arm: Arm) -> tuple[Example, ...]:
        """What an arm is trained on."""
        return self.poisoned[cell, arm.seed] if arm.study == "backdoor" else self.examples[cell]


@lru_cache(maxsize=8)  # every arm of every study asks for the same
def examples_fingerprint(examples: tuple[Example, ...]) -> str:
    """Identity of the examples of a training: their places, their tokens and where responses start. There may be very many."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.id} {example.n_prompt} {example.length} ".encode())
        digest.update(example.tokens.astype("<i8", copy=False).tobytes())
    return digest.hexdigest()[:LENGTH]


def made_key(
    trainings: Trainings,
    base: Checkpoint,
    cell: tuple[str, str],
    asked: Training,
    arm: Arm,
    similarity: Task | None,
    libraries: Mapping[str, str],
) -> str:
    """The identity of what a training makes: everything that decides its weights."""
    arguments = trainings.arguments[arm.study]
    examples = trainings.of(cell, arm)
    found: dict[str, Any] = {}
    if arm.found:
        assert similarity is not None
        found = {
            "found": arm.found,
            "top": most_critical_of(asked, base.n_layers),
            "dynamics": similarity.results["dynamics"],
        }
    return fingerprint(
        {
            "study": "training",
            "calculation": TRAINING,
            "base": base.fingerprint,
            "examples": examples_fingerprint(examples),
            "trained": [arm.trained.mode, list(arm.trained.layers)],
            "seed": arm.seed,
            "arguments": {name: value for name, value in arguments.items() if not name.startswith(_TOLD)},
            "lora": asked.lora.model_dump() if asked.lora else None,
            "dtype": trainings.dtypes[arm.study, cell[0]],
            "processes": asked.processes,
            "libraries": releases(libraries, with_peft=asked.lora is not None),
            **found,
        }
    )


def training_tasks(
    config: Config,
    trainings: Trainings,
    base: Checkpoint,
    cell: tuple[str, str],
    tested: str,
    similarity: Task | None,
    libraries: Mapping[str, str],
    *,
    is_tuned: bool,
    text: Mapping[str, Any],
) -> list[Task]:
    """The tasks that train a model for a data set, and those made of them. `tested` is the identity of the test examples.

    `text` is the part of keys that tells how answers end and are decoded (`Texts.identity`).

    The first is the fine-tune's, unless a checkpoint `is_tuned` already.
    """
    if cell not in trainings.examples:
        return []
    tasks = []
    for asked, arm in arms_of(config.studies):
        if arm.study == "finetune" and is_tuned:
            continue
        if arm.study == "backdoor":
            tasks.append(_attacked(config, trainings, base, cell, tested, asked, arm, similarity, libraries, text))
            continue
        key = made_key(trainings, base, cell, asked, arm, similarity, libraries)
        told = {name: value for name, value in trainings.arguments[arm.study].items() if name.startswith(_TOLD)}
        rows = fingerprint({"made": key, "tested": tested, "told": told, "table": "training"})
        needs = (similarity.name,) if arm.found and similarity else ()
        parts = (key, *(step_key(key, step) for step in getattr(asked, "along", ()))) if arm.study == "finetune" else ()
        tasks.append(Task(KINDS[arm.study], *cell, parts=parts, results={"training": rows}, needs=needs, at=arm.at))
    return [*tasks, *_compared(config, cell, tasks), *_judged(config, cell, tasks)]


def _attacked(
    config: Config,
    trainings: Trainings,
    base: Checkpoint,
    cell: tuple[str, str],
    tested: str,
    asked: Training,
    arm: Arm,
    similarity: Task | None,
    libraries: Mapping[str, str],
    text: Mapping[str, Any],
) -> Task:
    """The task that trains an arm on poisoned records and has it answer; untrained, the base answers."""
    backdoor = config.studies.backdoor
    assert backdoor is not None
    made = base.fingerprint
    if arm.trains:
        made = made_key(trainings, base, cell, asked, arm, similarity, libraries)
    clean, triggered = trainings.prompts[cell]
    answered = {
        "made": made,
        "tested": tested,
        "prompts": fingerprint([[e.id, e.tokens[: e.n_prompt].tolist()] for e in (*clean, *triggered)]),
        "sampled": [backdoor.tokens, backdoor.temperature, backdoor.top_p, arm.seed if backdoor.temperature else None],
        "text": text,
    }
    results = {"texts": fingerprint({**answered, "table": "texts"})}
    if arm.trains:
        results = {"training": fingerprint({**answered, "table": "training"}), **results}
    needs = (similarity.name,) if arm.found and similarity else ()
    return Task("backdoor", *cell, results=results, needs=needs, at=arm.at)


def step_key(key: str, step: int) -> str:
    """The identity of the weights of a training after so many steps."""
    return fingerprint({"made": key, "step": step})


def _compared(config: Config, cell: tuple[str, str], tasks: list[Task]) -> list[Task]:
    """The task that compares the curves of adaptation."""
    curves = [task for task in tasks if task.kind == "adapt"]
    if not curves or config.studies.adaptation is None:
        return []
    made_from = {"study": "adaptation", "calculation": TRAINING, "curves": [t.results["training"] for t in curves]}
    results = {"adaptation": fingerprint(made_from)}
    return [Task("adaptation", *cell, results=results, needs=tuple(task.name for task in curves))]


def _judged(config: Config, cell: tuple[str, str], tasks: list[Task]) -> list[Task]:
    """The tasks that judge the answers of all arms, one a way of judging, so that one that fails fails alone."""
    answered, asked = [task for task in tasks if task.kind == "backdoor"], config.studies.backdoor
    if not answered or asked is None:
        return []
    texts = [task.results["texts"] for task in answered]
    needs = tuple(task.name for task in answered)
    judged = []
    for name, told in judgings(asked).items():
        made_from = {
            "study": "judging",
            "calculation": TRAINING,
            "texts": texts,
            "by": told.model_dump(exclude=_ASKING),
        }
        results = {table: fingerprint({**made_from, "table": table}) for table in ("attack", "answers")}
        judged.append(Task("judge", *cell, results=results, needs=needs, at=name))
    return judged


def checkpoint_name(cell: tuple[str, str], key: str) -> str:
    """Where a run keeps the checkpoint of this identity, below its folder."""
    return f"checkpoints/{cell[0]}/{cell[1]}-{key[:16]}"


def promised(base: Checkpoint, asked: Training, folder: Path, key: str, dtype: str) -> Checkpoint:
    """The checkpoint that a training will make, described before it is there: its base's shapes, and its key as fingerprint.

    With LoRA it is an adapter on the base.
    """
    source = str(folder)
    if asked.lora:
        return Checkpoint(source, folder, {}, {}, 0, True, key)
    return Checkpoint(
        source, folder, {**base.config, "dtype": dtype}, base.shapes, base.n_parameters * SIZES[dtype], False, key
    )
