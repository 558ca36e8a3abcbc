"""Reading a PEFT adapter's config, and refusing the types that are not a change of the base's weights.

What PEFT itself has to say about a type (does its tuner know layers, can it merge) is asked of the installed PEFT, not listed here.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.errors import InputError, nearest, shortened, shown
from raysweep.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from peft import PeftConfig

ADAPTER_NAME = "default"  # PEFT's own name for the only adapter of a model
OF_MODULES = "base_model.model."  # how the names of tensors begin that belong to one module of the base
INSTEAD = "merge it into its base with the software that trained it, and give the merged checkpoint"
NOT_MERGEABLE = "give a full checkpoint, or an adapter that can be merged (plain LoRA or DoRA, for example)"
# By setting, the values for which PEFT imports and loads nothing.
_FOREIGN: dict[str, tuple[object, ...]] = {"megatron_config": (), "shadow_model": ("mirror",)}
_NOTES = ("unsloth_",)  # how names begin that record the tool that trained the adapter
# Settings that every adapter has, or that decide nothing about merging: not worth a place in a message.
_COMMON = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "lora_alpha", "lora_dropout", "peft_type", "peft_version"),
    *("r", "revision", "runtime_config", "target_modules", "task_type"),
}  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Silence PEFT's warnings: whatever they warn of is checked here, and refused or reported in raysweep's own words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_peft_config(adapter: Checkpoint) -> PeftConfig:
    """Read adapter_config.json as PEFT does.

    Raises InputError for what the installed PEFT cannot read, and for types that cannot become a change of weights: prompts and
    prefixes, routers of several adapters, modules that are added next to the base's.
    """
    import peft

    path, kind = adapter.folder / "adapter_config.json", adapter.config.get("peft_type")
    _refuse_foreign_code(adapter, path)
    if kind not in peft.PEFT_TYPE_TO_CONFIG_MAPPING:
        hint = nearest(str(kind), [known.value for known in peft.PEFT_TYPE_TO_CONFIG_MAPPING])
        raise InputError(f"{path} has peft_type {shown(kind)}, which PEFT {peft.__version__} does not know; {hint}")
    try:
        with quiet():
            config = peft.PeftConfig.from_pretrained(adapter.folder)
    except Exception as error:  # each type's config checks its values in its own way
        raise InputError(f"PEFT {peft.__version__} cannot read {path}: {one_line(error)}") from error
    if hasattr(config, "progressbar"):
        config.progressbar = False
    _refuse_what_has_no_weights(adapter, config)
    return config


def _refuse_foreign_code(adapter: Checkpoint, path: Path) -> None:
    """Refuse settings for which PEFT imports a module, or loads a model from a place that the adapter names."""
    for name, harmless in _FOREIGN.items():
        if (value := adapter.config.get(name)) and value not in harmless:
            raise InputError(
                f"{path} has {name} {shown(value)}, for which PEFT would import or load what the adapter names, and raysweep "
                f"never runs code that a checkpoint names; {INSTEAD}"
            )


def _refuse_what_has_no_weights(adapter: Checkpoint, config: PeftConfig) -> None:
    from peft import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.tuners.tuners_utils import BaseTuner

    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type)
    wraps_layers = isinstance(tuner, type) and issubclass(tuner, BaseTuner)
    if config.is_prompt_learning or not wraps_layers or getattr(tuner, "tuner_layer_cls", None) is None:
        raise InputError(
            f"PEFT adapter '{adapter.source}' is of type {config.peft_type.value}, which changes no layer's weights and "
            f"cannot be merged; {NOT_MERGEABLE}"
        )


def described_type(config: PeftConfig) -> str:
    """The adapter's type with the settings that set it apart: `LORA (lora_bias=True)`."""
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name, None)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name not in _COMMON and value and value != default:
            found.append(f"{field.name}={shown(value)}")
    name = str(config.peft_type.value)
    return f"{name} ({shortened(', '.join(found), 200)})" if found else name


def unknown_settings(adapter: Checkpoint, config: PeftConfig) -> dict[str, object]:
    """Return what adapter_config.json sets and the installed PEFT has no setting for, except empty values and other tools' notes."""
    known = {field.name for field in dataclasses.fields(config)}
    found = {name: value for name, value in adapter.config.items() if name not in known and value}
    return {name: value for name, value in found.items() if not name.startswith(_NOTES)}


def one_line(error: BaseException) -> str:
    """An error's text for a message: PEFT's may list every tensor of a model."""
    lines = " ".join(str(error).splitlines()[:2])
    return shortened(" ".join(lines.split()).rstrip("."), 300) or type(error).__name__
