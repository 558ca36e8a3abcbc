"""The config of a run: YAML in, typed and checked values out.

Only what can be checked without a checkpoint or a record is checked here; the engine checks the rest, also before anything
runs. Every key has a description, from which the reference and the JSON schema are made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from raysweep.config_datasets import DatasetConfig
from raysweep.config_execution import ExecutionConfig
from raysweep.config_fields import Date, Mode, Name, Named, Place, Section
from raysweep.config_overrides import overridden
from raysweep.config_problems import problems_in_words
from raysweep.config_renamed import config_renamed
from raysweep.config_storage import checked_options, checked_storage, scheme_of
from raysweep.config_studies import StudiesConfig
from raysweep.config_yaml import NO_YAML, read_yaml_file
from raysweep.errors import InputError, SeveralProblemsError, nearest, shortened, shown


class ModelConfig(Named):
    """A base checkpoint and the checkpoints that were fine-tuned from it."""

    base: Place = Field(
        description=(
            "The base checkpoint: a folder written by `save_pretrained`, a hub id, or a laboratory name such as "
            "`lab://tiny`."
        )
    )
    architecture: Place | None = Field(
        default=None,
        description=(
            "A `config.json`, its path relative to the config file. `raysweep plan` takes the model's sizes from "
            "it if the checkpoint is not on this machine; a run does not use it."
        ),
    )
    tuned: dict[Name, Place] = Field(
        default={},
        description=(
            "The fine-tuned checkpoint for each data set, by the data set's name: a folder, a hub id, a "
            "laboratory name, or a PEFT adapter on the base."
        ),
    )
    template: str = Field(
        default="chat",
        description=(
            "The prompt template around a record's texts. `chat` is the tokenizer's chat template; `plain` adds "
            "no words, as encoders need; `llama2`, `llama3` and `phi3` are the texts that published checkpoints "
            "were tuned with."
        ),
    )
    template_date: Date | None = Field(
        default=None,
        description=(
            "The date (YYYY-MM-DD) passed to a chat template that reads the clock. Without it, a run uses the "
            "date recorded in its run folder, or else today's date."
        ),
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description=(
            "The number format of weights and arithmetic while the model is measured. `auto` is the checkpoint's "
            "own on a GPU and float32 on a CPU."
        ),
    )


class Config(Section):
    """A complete run: models, data sets, studies, how to execute them, and where to store the results."""

    name: Name = Field(description="The name of the run. It is shown in the report, on dashboards and in trackers.")
    models: Annotated[list[ModelConfig], Field(min_length=1)] = Field(
        description="The models to study. Each is studied on every data set."
    )
    datasets: Annotated[list[DatasetConfig], Field(min_length=1)] = Field(
        description="The data sets to measure on, and the records to fine-tune on."
    )
    studies: StudiesConfig = Field(description="The studies to run. A study that is not listed is not run.")
    execution: ExecutionConfig = Field(
        default=ExecutionConfig(), description="Where and how to compute. Results stay the same, up to rounding."
    )
    storage: Place = Field(
        description=(
            "The run folder: a path on this machine or on a shared file system, or a URL such as "
            "`s3://bucket/runs/one`. Relative paths are relative to the current folder."
        )
    )
    storage_options: dict[str, Any] = Field(
        default={},
        description=(
            "Options for fsspec's file system if `storage` is a URL, for example `endpoint_url`. Secrets are "
            "refused here; put credentials into the environment."
        ),
    )
    storage_mode: Mode | None = Field(
        default=None,
        description=(
            'Permissions of the run folder, as chmod writes them, in quotes: `"700"` makes it yours alone. By '
            "default the umask decides. Folders only."
        ),
    )

    @field_validator("storage")
    @classmethod
    def _stored(cls, value: str) -> str:
        return checked_storage(value)

    @field_validator("storage_options")
    @classmethod
    def _no_secrets(cls, value: dict[str, Any]) -> dict[str, Any]:
        checked_options(value)
        return value

    @property
    def folder_mode(self) -> int | None:
        """`storage_mode` as a number."""
        return None if self.storage_mode is None else int(self.storage_mode, 8)

    @model_validator(mode="after")
    def _reachable(self) -> Config:
        scheme = scheme_of(self.storage)
        if self.storage_options and scheme in (None, "file"):
            raise ValueError(
                f"storage_options apply only to a URL, and storage is the folder {shown(self.storage)}; remove them"
            )
        if self.storage_mode is not None and scheme not in (None, "file"):
            raise ValueError(f"storage_mode applies only to a folder, and storage is {shown(self.storage)}; remove it")
        if scheme == "memory" and self.execution.executor == "ray":
            raise ValueError(
                f"storage {shown(self.storage)} is this process's memory, which workers on Ray do not share; give a "
                "folder or a URL, or use executor local"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        for what, named in (("models", self.models), ("datasets", self.datasets)):
            names = [item.name for item in named]
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise ValueError(f"two {what} are named '{doubled[0]}'; give each its own name")
        known = {dataset.name for dataset in self.datasets}
        for model in self.models:
            for name in model.tuned:
                if name not in known:
                    raise ValueError(
                        f"model '{model.name}' has a checkpoint tuned on '{name}', which is not a data set of this "
                        f"config; {nearest(name, known)}"
                    )
        if self.studies.correlation:
            check_published("studies.correlation.published", self.studies.correlation.published, self)
        of_tuned = self.studies.removal is not None and self.studies.removal.of == "tuned"
        there = self.studies.finetune or any(model.tuned for model in self.models)
        for study, needed in (("substitution", self.studies.substitution), ("removal of: tuned", of_tuned)):
            if needed and not there:
                raise ValueError(
                    f"{study} needs a tuned checkpoint; give models[].tuned: {{data set: checkpoint}}, or studies.finetune"
                )
        return self

    @model_validator(mode="after")
    def _trainable(self) -> Config:
        trained = [dataset.name for dataset in self.datasets if dataset.train]
        for name, asked in self.studies.trainings.items():
            if not trained:
                raise ValueError(
                    f"studies.{name} trains models, and no data set has training records; set datasets[].train"
                )
            if asked.processes > 1 and self.execution.executor != "ray":
                raise ValueError(
                    f"studies.{name}.processes is {asked.processes}, and executor is {self.execution.executor}; set "
                    "execution.executor to ray, which starts them, or processes to 1"
                )
            if scheme_of(self.storage) not in (None, "file"):
                raise ValueError(
                    f"studies.{name} writes checkpoints to a folder, and storage is {shown(self.storage)}; give a "
                    "folder that all workers see, or fine-tune in a separate run"
                )
        if self.studies.finetune and all(set(trained) <= set(model.tuned) for model in self.models):
            raise ValueError(
                "studies.finetune has nothing to train: models[].tuned names a checkpoint for every data set with "
                "train; remove one of them"
            )
        return self

    def to_yaml(self) -> str:
        """The config as YAML, defaults spelled out."""
        return yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)


def check_published(where: str, published: Mapping[str, Mapping[str, Any]], config: Config) -> None:
    """Raise ValueError where figures found elsewhere are of a model or a data set that the config does not have."""
    models, datasets = {model.name for model in config.models}, {dataset.name for dataset in config.datasets}
    for model, of_model in published.items():
        for name, known, what in [(model, models, "model"), *((dataset, datasets, "data set") for dataset in of_model)]:
            if name not in known:
                raise ValueError(
                    f"{where} has figures for '{name}', which is not a {what} of this config; {nearest(name, known)}"
                )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a YAML config; `overrides` are `a.b=c` texts, the value read as YAML.

    Raises InputError naming the file, the key, and the nearest known key for a misspelt one.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        kept = path / "config.yaml"
        file = f"'{kept}', the run's own" if kept.is_file() else "a file"
        raise InputError(f"config '{path}' is a folder; give {file}")
    if not path.is_file():
        raise InputError(f"config '{path}' does not exist; `raysweep init` writes one to start from")
    try:
        values = read_yaml_file(path)
    except OSError as error:
        raise InputError(f"config '{path}' cannot be read: {error.strerror or error}") from error
    except InputError as error:
        raise InputError(f"config '{path}': {error}") from error
    except NO_YAML as error:
        raise InputError(f"config '{path}' is not YAML: {shortened(' '.join(str(error).split()), 1000)}") from error
    return parse_config(_beside(path, values), where=str(path), overrides=overrides)


def _beside(path: Path, values: Any) -> Any:
    """The values with each `architecture` as a path from here, for a config's names it from where it lies itself."""
    models = values.get("models") if isinstance(values, dict) else None
    if not isinstance(models, list):
        return values

    def placed(model: Any) -> Any:
        named = model.get("architecture") if isinstance(model, dict) else None
        if not isinstance(named, str) or named.startswith("~"):
            return model
        return {**model, "architecture": str(path.parent / named)}

    return {**values, "models": [placed(model) for model in models]}


def parse_config(values: Any, *, where: str = "config", overrides: Sequence[str] = ()) -> Config:
    """A checked config from plain values (as YAML gives them). Raises InputError as load_config does."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: a config is a mapping of keys, not {type(values).__name__}")
    for override in overrides:
        values = overridden(values, override)
    try:
        _check_texts(values)
        return Config.model_validate(config_renamed(values))
    except RecursionError as error:
        raise InputError(f"{where}: keys are nested too deeply, or contain themselves (YAML's & and *)") from error
    except ValidationError as error:
        problems = [f"{where}: {problem}" for problem in problems_in_words(error, Config)]
        raise SeveralProblemsError("\n".join(problems)) from error
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _check_texts(values: Any) -> None:
    """Raise ValueError for text that can be in no file name and no UTF-8 file, whatever key it belongs to."""
    waiting, seen = [values], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, str):
            bad = next((c for c in node if c == "\0" or "\ud800" <= c <= "\udfff"), None)
            if bad is not None:
                raise ValueError(f"the text {shown(node)} contains {bad!r}, which is not a valid character; remove it")
        elif isinstance(node, (Mapping, list)) and id(node) not in seen:
            seen.add(id(node))  # YAML's anchors may put one list into many places, or into itself
            waiting += [*node.keys(), *node.values()] if isinstance(node, Mapping) else node
