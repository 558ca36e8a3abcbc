"""The config of a run: YAML in, typed and checked values out.

Only what can be checked without touching a checkpoint or a record is checked here; the rest is the engine's inspection,
which also happens before anything runs. Every key has its meaning beside it, and `raysweep init` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import core_schema

from raysweep.config_backdoor import BackdoorConfig
from raysweep.config_exclude import ExcludeConfig
from raysweep.config_execution import ExecutionConfig
from raysweep.config_expected import ExpectedConfig
from raysweep.config_fields import Name, Place, Positive, distinct
from raysweep.config_problems import problems_in_words
from raysweep.config_removal import RemovalConfig
from raysweep.config_spectrum import SpectrumConfig
from raysweep.config_stop import StopConfig
from raysweep.config_storage import checked_options, checked_storage, scheme_of
from raysweep.config_training import AdaptationConfig, FinetuneConfig, Training, TrainSource
from raysweep.config_yaml import NO_YAML, read_yaml
from raysweep.errors import InputError, nearest, shown

Metric = Literal[
    "cka_linear", "cka_linear_debiased", "cka_rbf", "svcca", "pwcca", "cca_top_k", "procrustes", "rsa",
    "mutual_knn", "cknna", "angular", "block_influence", "cosine",
]  # fmt: skip


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(_Section):
    """A base checkpoint and the checkpoints fine-tuned from it (data set → checkpoint or PEFT adapter).

    `architecture` is a config.json, its path relative to the config's, that `raysweep plan` takes sizes from where a checkpoint
    is not on this machine.
    """

    name: Name
    base: Place
    architecture: Place | None = None
    tuned: dict[Name, Place] = {}
    wording: str = "chat"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"


class DatasetConfig(_Section):
    """Records to measure on; `prompt` and `response` belong to the format `columns`.

    `exclude` leaves records out; of the others `last` takes the last so many, `all_but_last` holds those back, as a
    split does that was made by counting; `limit` counts what remains.
    `too_long` says what becomes of examples longer than the model's context, after a cut to `max_tokens`. `train` are the
    records that models are fine-tuned on for it. `expected` is what `raysweep plan` takes the records to be like where they
    are not on this machine.
    """

    name: Name
    path: Place
    format: str
    split: str | None = None
    exclude: ExcludeConfig | None = None
    last: Positive | None = None
    all_but_last: Positive | None = None
    limit: Positive | None = None
    max_tokens: Positive | None = None
    too_long: Literal["refuse", "cut"] = "refuse"
    prompt: str | None = None
    response: str | None = None
    train: TrainSource | None = None
    expected: ExpectedConfig | None = None

    @model_validator(mode="after")
    def _one_end(self) -> DatasetConfig:
        if self.last is not None and self.all_but_last is not None:
            raise ValueError(f"last is {self.last} and all_but_last is {self.all_but_last}; give one of them")
        return self


class GenerationConfig(_Section):
    """Text generated under each window, or `all` changes: for the first `examples` of a data set, `tokens` new tokens each."""

    examples: Positive = 3
    tokens: Positive = 32
    changes: Literal["windows", "all"] = "windows"


class _OrAll:
    """Widths, or `all`: what is neither is told as a wrong list is (a plain union would tell two problems of each value)."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def read(value: object, as_list: core_schema.ValidatorFunctionWrapHandler) -> object:
            return value if value == "all" else as_list(value)

        return core_schema.no_info_wrap_validator_function(
            read,
            handler.generate_schema(Annotated[list[Positive], Field(min_length=1)]),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )


class SubstitutionConfig(_Section):
    """Every window of each width is put back to the base model's, and the test loss measured; and what is asked for beside.

    `coefficients` are steps between tuned (0) and base (1) for windows and sets; `modules` put back a part of each window's
    layers alone; `reverse` puts each window of the tuned model into the base. 1 is always among the coefficients. `verify`
    of all these, drawn at random, are computed again by true substitution of modules. With `estimator: gradient` all are
    estimated to first order in the weights, from gradients at so many `points` between the models, and a `sample` of them, drawn
    at random, is measured exactly beside the tuned model and all layers put back. `stop` ends an exact sweep early.
    """

    widths: Annotated[list[int] | Literal["all"], _OrAll()] = [5]
    sets: dict[Name, Annotated[list[Annotated[int, Field(ge=0, le=10**9, strict=True)]], Field(min_length=1)]] = {}
    modules: list[Literal["attention", "mlp"]] = []
    coefficients: list[Annotated[float, Field(ge=0, le=1)]] = []
    reverse: bool = False
    verify: Annotated[int, Field(ge=0, le=10**6, strict=True)] = 0
    estimator: Literal["exact", "gradient"] = "exact"
    points: Annotated[int, Field(ge=1, le=64, strict=True)] = 1
    sample: Annotated[int, Field(ge=0, le=10**6, strict=True)] = 8
    stop: StopConfig | None = None
    generate: GenerationConfig | None = None

    @model_validator(mode="after")
    def _exact_only(self) -> SubstitutionConfig:
        if self.stop and self.estimator != "exact":
            raise ValueError(f"stop decides by exact losses, and estimator is {self.estimator}; leave one of them out")
        return self

    @model_validator(mode="after")
    def _estimated(self) -> SubstitutionConfig:
        for key in ("points", "sample"):
            if (
                self.estimator == "exact"
                and key in self.model_fields_set
                and getattr(self, key) != type(self).model_fields[key].default
            ):
                raise ValueError(
                    f"{key} is for estimator: gradient, and estimator is exact; leave {key} out, or set the estimator"
                )
        return self

    @field_validator("sets")
    @classmethod
    def _distinct(cls, value: dict[str, list[int]]) -> dict[str, list[int]]:
        seen: dict[frozenset[int], str] = {}
        for name, layers in value.items():
            other = seen.setdefault(frozenset(layers), name)
            if other != name:
                raise ValueError(f"the sets '{other}' and '{name}' have the same layers; leave one out")
        return value


class SimilarityConfig(_Section):
    """Similarity of the base model's layers on every data set, and the dynamics δ that follows from it.

    `components` is for the metric cca_top_k, `neighbours` for mutual_knn and cknna, and `variance`, the share of a layer's
    variance that is kept, for svcca and pwcca.
    `diagonal` counts a layer's similarity to itself in its δ, as the paper does.
    """

    metrics: Annotated[list[Metric], Field(min_length=1)] = ["cka_linear"]
    pooling: Literal["first", "last", "mean"] = "last"
    neighbourhood: Positive = 3
    components: Positive = 10
    neighbours: Positive = 10
    variance: Annotated[float, Field(gt=0, le=1)] = 0.99
    diagonal: bool = True

    @field_validator("metrics")
    @classmethod
    def _distinct(cls, value: list[Metric]) -> list[Metric]:
        return distinct(value, "each metric")

    @field_validator("neighbourhood")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(f"a neighbourhood has a layer in its middle, so it is odd; {value} is even")
        return value

    @model_validator(mode="after")
    def _has_neighbours(self) -> SimilarityConfig:
        if self.neighbourhood == 1 and not self.diagonal:
            raise ValueError("a neighbourhood of 1 has no layer but its own; with diagonal: false give 3 or more")
        return self


class CorrelationConfig(_Section):
    """Rank correlation of δ with the loss after substitution; `drop_ends` leaves so many centres out at each end.

    `published` are ρ found elsewhere, by model and data set, to stand beside those measured; they change nothing else.
    """

    resamples: Annotated[int, Field(ge=1, le=10**6, strict=True)] = 1000
    seed: Annotated[int, Field(ge=0, le=2**63, strict=True)] = 0
    drop_ends: Annotated[int, Field(ge=0, le=10**9, strict=True)] = 0
    published: dict[Name, dict[Name, Annotated[float, Field(ge=-1, le=1)]]] = {}


class StudiesConfig(_Section):
    """What to do; a study that is left out is not run. Correlation needs substitution and similarity."""

    substitution: SubstitutionConfig | None = None
    similarity: SimilarityConfig | None = None
    spectrum: SpectrumConfig | None = None
    correlation: CorrelationConfig | None = None
    removal: RemovalConfig | None = None
    finetune: FinetuneConfig | None = None
    adaptation: AdaptationConfig | None = None
    backdoor: BackdoorConfig | None = None

    @model_validator(mode="after")
    def _whole(self) -> StudiesConfig:
        if not any(getattr(self, name) for name in type(self).model_fields if name != "correlation"):
            raise ValueError(
                "asks for no study; give substitution, similarity, spectrum, removal, finetune, adaptation, backdoor or "
                "several (an empty one is written {})"
            )
        if self.correlation and not (self.substitution and self.similarity):
            raise ValueError("correlation needs both substitution and similarity; add the missing one")
        if self.removal and self.removal.layers == "critical" and not self.similarity:
            raise ValueError(
                "removal at critical layers needs similarity, which finds them; add it, or list the layers"
            )
        return self

    @model_validator(mode="after")
    def _found(self) -> StudiesConfig:
        for name, asked in self.trainings.items():
            if not self.similarity and (choice := asked.found):
                raise ValueError(
                    f"{name} asks for {choice} layers, which similarity finds, and there is none; add similarity, or list the layers"
                )
        return self

    @property
    def trainings(self) -> dict[str, Training]:
        """The studies that train models, by their names."""
        all_of_them = {"finetune": self.finetune, "adaptation": self.adaptation, "backdoor": self.backdoor}
        return {name: asked for name, asked in all_of_them.items() if asked}

    @model_validator(mode="after")
    def _one_pooling(self) -> StudiesConfig:
        asked = self.spectrum.pooling if self.spectrum else None
        if self.similarity and asked and asked != self.similarity.pooling:
            raise ValueError(
                f"spectrum.pooling is {asked} and similarity.pooling is {self.similarity.pooling}, and both are of the same "
                "stored states; leave spectrum.pooling out, or make them one"
            )
        return self

    @property
    def pooling(self) -> Literal["first", "last", "mean"] | None:
        """How the stored states are pooled; None where no study asks for states."""
        if self.similarity:
            return self.similarity.pooling
        return (self.spectrum.pooling or "last") if self.spectrum else None


class Config(_Section):
    """A whole run. `storage_options` go to fsspec's file system for a `storage` that is a URL (endpoint_url, …); no secrets."""

    name: Name
    models: Annotated[list[ModelConfig], Field(min_length=1)]
    datasets: Annotated[list[DatasetConfig], Field(min_length=1)]
    studies: StudiesConfig
    execution: ExecutionConfig = ExecutionConfig()
    storage: Place
    storage_options: dict[str, Any] = {}

    @field_validator("storage")
    @classmethod
    def _stored(cls, value: str) -> str:
        return checked_storage(value)

    @field_validator("storage_options")
    @classmethod
    def _no_secrets(cls, value: dict[str, Any]) -> dict[str, Any]:
        checked_options(value)
        return value

    @model_validator(mode="after")
    def _reachable(self) -> Config:
        scheme = scheme_of(self.storage)
        if self.storage_options and scheme in (None, "file"):
            raise ValueError(
                f"storage_options are for a URL, and storage is the folder {shown(self.storage)}; leave them out"
            )
        if scheme == "memory" and self.execution.executor == "ray":
            raise ValueError(
                f"storage {shown(self.storage)} is in this process's memory, which workers on Ray do not share"
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
                        f"model '{model.name}' has a checkpoint tuned on '{name}', which is no data set here; {nearest(name, known)}"
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
                    f"studies.{name} trains models, and no data set has records for it; give datasets[].train"
                )
            if asked.processes > 1 and self.execution.executor != "ray":
                raise ValueError(
                    f"studies.{name}.processes is {asked.processes}, and executor is {self.execution.executor}; set "
                    "execution.executor to ray, which starts them, or processes to 1"
                )
            if scheme_of(self.storage) not in (None, "file"):
                raise ValueError(
                    f"studies.{name} writes checkpoints to a folder, and storage is {shown(self.storage)}; give a folder that "
                    "all workers see, or fine-tune in a run of its own"
                )
        if self.studies.finetune and all(set(trained) <= set(model.tuned) for model in self.models):
            raise ValueError(
                "studies.finetune has nothing to make: models[].tuned names a checkpoint for every data set with train; leave "
                "one of them out"
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
                raise ValueError(f"{where} has figures of '{name}', which is no {what} here; {nearest(name, known)}")


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
        values = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"config '{path}' cannot be read: {error.strerror or error}") from error
    except NO_YAML as error:
        raise InputError(f"config '{path}' is not YAML: {' '.join(str(error).split())}") from error
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
        values = _overridden(values, override)
    try:
        _check_texts(values)
        return Config.model_validate(values)
    except RecursionError as error:
        raise InputError(f"{where}: keys are nested too deeply, or in themselves (YAML's & and *)") from error
    except ValidationError as error:
        raise InputError("\n".join(f"{where}: {problem}" for problem in problems_in_words(error, Config))) from error
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
                raise ValueError(f"the text {shown(node)} holds {bad!r}, which is no character; mend it")
        elif isinstance(node, (Mapping, list)) and id(node) not in seen:
            seen.add(id(node))  # YAML's anchors may put one list into many places, or into itself
            waiting += [*node.keys(), *node.values()] if isinstance(node, Mapping) else node


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Options for a store from texts such as `endpoint_url=http://localhost:9000`, the value read as YAML. Raises InputError."""
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InputError("--option: write it as key=value, for example endpoint_url=http://localhost:9000")
        try:
            options = _with(options, key.split("."), read_yaml(value), text)
        except NO_YAML:
            raise InputError(f"--option {key}: the value is not YAML") from None
    return options


def _overridden(values: Any, override: str) -> Any:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override}: write it as key=value, for example execution.chunk=16")
    try:
        value = read_yaml(text)
    except NO_YAML as error:
        raise InputError(f"--set {override}: the value is not YAML: {' '.join(str(error).split())}") from error
    return _with(values, key.split("."), value, override)


def _with(node: Any, path: list[str], value: Any, override: str) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(node, list):
        if not head.isdecimal() or len(head) > 9 or int(head) >= len(node):
            raise InputError(f"--set {override}: '{head}' is no place in a list of {len(node)}; count from 0")
        return [_with(item, rest, value, override) if i == int(head) else item for i, item in enumerate(node)]
    if node is None:
        node = {}
    if not isinstance(node, dict):
        raise InputError(f"--set {override}: '{head}' lies under a plain value")
    return {**node, head: _with(node.get(head), rest, value, override)}
