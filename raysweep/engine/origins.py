"""What reports say of a run's origins: checkpoints, data, versions, steps of trainings, figures published elsewhere. Pure."""

from __future__ import annotations

import platform
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raysweep.config import Config
from raysweep.engine.facts import Facts
from raysweep.engine.redone import CALCULATIONS
from raysweep.engine.shared import shared_by
from raysweep.engine.steps import StepModel
from raysweep.studies.trainer_arguments import training_steps


def describe_run(config: Config, facts: Facts) -> dict[str, Any]:
    """What reports say of the run's origins: checkpoints, data, versions. Plain values."""
    checkpoints = []
    for name, model in facts.models.items():
        step = next((m for m in config.models if m.name == name and isinstance(m, StepModel)), None)
        for role, found in [
            *([] if step else [("base", model.base)]),
            *((f"tuned on {d}", c) for d, c in model.tuned.items()),
        ]:
            checkpoints.append(
                {
                    "model": name,
                    "role": role + (" (PEFT adapter)" if found.adapter else ""),
                    "path": found.source,
                    "fingerprint": found.fingerprint[:16],
                    "layers": str(model.base.n_layers),
                    "parameters": f"{found.n_parameters:,}",
                    "dtype": model.dtype,
                    **({"note": found.note} if found.note else {}),
                }
            )
    return {
        "along": _along(config, facts),
        "name": config.name,
        "command": _command(),
        "device": facts.device,
        "layers": {name: model.base.n_layers for name, model in facts.models.items()},
        "published_attack": _published(config),
        "calculations": CALCULATIONS,
        "versions": {**facts.libraries, "python": platform.python_version()},
        "checkpoints": checkpoints,
        "datasets": dataset_records(config, facts),
        "warnings": list(facts.warnings),
        "shared": [asdict(shared) for shared in shared_by(facts.models)],
        "published_rho": config.studies.correlation.published if config.studies.correlation else {},
    }


def checkpoint_notes(facts: Facts) -> dict[str, str]:
    """Return what provenance files say of the weights of a plan's checkpoints, by source; only of those that have a note."""
    checkpoints = [found for model in facts.models.values() for found in (model.base, *model.tuned.values())]
    return {found.source: found.note for found in checkpoints if found.note}


def dataset_records(config: Config, facts: Facts) -> list[dict[str, str]]:
    """What became of the records of each data set for each model. Plain texts."""
    datasets = []
    for (model_name, dataset_name), cell in facts.cells.items():
        asked = next(d for d in config.datasets if d.name == dataset_name)
        model = next(m for m in config.models if m.name == model_name)
        date = facts.template_dates.get(model.of if isinstance(model, StepModel) else model_name)
        datasets.append(
            {
                "dataset": dataset_name,
                "model": model_name,
                "path": asked.path,
                "format": asked.format,
                "wording": model.template,
                **({} if date is None else {"template_date": date}),
                "examples": str(sum(map(len, cell.chunks))),
                "left_out": str(cell.n_unusable),
                "cut": str(cell.n_cut),
                "excluded": str(cell.n_excluded),
                "blank_responses": str(cell.n_blank),
                "answers_cut": str(cell.n_answer_cut),
            }
        )
    return datasets


def _command() -> str:
    """This process's command line, as a shell takes it."""
    program = Path(sys.argv[0])
    return shlex.join([program.parent.name if program.name == "__main__.py" else program.name, *sys.argv[1:]])


def _along(config: Config, facts: Facts) -> list[dict[str, Any]]:
    """Which model's rows are of which step of a fine-tuning; the last step's are the model's own."""
    steps: list[dict[str, Any]] = []
    finetune = config.studies.finetune
    for model in config.models:
        if finetune is None or not isinstance(model, StepModel):
            continue
        for dataset in facts.models[model.name].promised:
            told = {"model": model.of, "dataset": dataset, "step": model.step, "measured": model.name}
            arguments, examples = facts.trainings.arguments["finetune"], facts.trainings.examples[model.of, dataset]
            last = training_steps(arguments, len(examples), finetune.processes)
            steps += [told, {**told, "step": last, "measured": model.of}]
    return [told for place, told in enumerate(steps) if told not in steps[:place]]


def _published(config: Config) -> dict[str, Any]:
    """Rates of attacks that the config gives to stand beside those found, by model and arm. Plain values."""
    backdoor = config.studies.backdoor
    given = backdoor.published if backdoor else {}
    return {model: {arm: told.model_dump() for arm, told in arms.items()} for model, arms in given.items()}
