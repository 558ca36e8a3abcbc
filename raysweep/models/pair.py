"""Whether two checkpoints are one model before and after fine-tuning, and where they differ if they are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint, standard_config
from raysweep.models.rotary import rotary_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_SIZES = ("hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
_SCALED_BY_LENGTH = ("dynamic", "yarn", "longrope")  # rotary types whose tables depend on max_position_embeddings


def check_pair(base: Checkpoint, tuned: Checkpoint) -> None:
    """Refuse (InputError) two checkpoints that are not the same architecture, depth, shapes, vocabulary and rotary setting.

    Names the first tensor that differs, with both shapes. A PEFT adapter is checked when it is merged.
    """
    where = f"base '{base.source}' and tuned '{tuned.source}'"
    if base.adapter:
        raise InputError(f"base '{base.source}' is a PEFT adapter; give the full checkpoint that it was trained on")
    if tuned.adapter or base.on_paper or tuned.on_paper:  # names on paper are the model's, those of files may be older
        return
    if base.config.get("model_type") != tuned.config.get("model_type"):
        raise InputError(
            f"{where} are different architectures: {base.config.get('model_type')} and {tuned.config.get('model_type')}; "
            "a pair must be one model before and after fine-tuning"
        )
    for name in sorted(base.shapes.keys() & tuned.shapes.keys()):
        if base.shapes[name] != tuned.shapes[name]:
            raise InputError(
                f"{where} differ in tensor {name}: {list(base.shapes[name])} and {list(tuned.shapes[name])}; "
                "a pair must have the same width and vocabulary"
            )
    if base.n_layers != tuned.n_layers:
        only = _only_in_one(base, tuned)
        raise InputError(f"{where} differ in depth: {base.n_layers} and {tuned.n_layers} decoder layers{only}")
    check_settings(standard_config(base.folder), standard_config(tuned.folder), where)


def check_settings(base: PreTrainedConfig, tuned: PreTrainedConfig, where: str) -> None:
    """Refuse (InputError) two configs of unlike sizes or rotary settings.

    They are compared as transformers reads them: files written by different versions name the same setting differently,
    and leave out what is a default.
    """
    ours, theirs = base.get_text_config(), tuned.get_text_config()
    for key in _SIZES:
        if getattr(ours, key, None) != getattr(theirs, key, None):
            raise InputError(f"{where} differ in {key}: {getattr(ours, key, None)} and {getattr(theirs, key, None)}")
    for key in ("rope_parameters", *_length_settings(ours)):
        if getattr(ours, key, None) != getattr(theirs, key, None):
            raise InputError(
                f"{where} differ in {key}: {getattr(ours, key, None)} and {getattr(theirs, key, None)}; "
                "a layer put back would see the other model's rotary tables"
            )


def _length_settings(config: PreTrainedConfig) -> tuple[str, ...]:
    """`max_position_embeddings` where the rotary tables depend on it (elsewhere it only says how long a text may be)."""
    kinds = {settings.get("rope_type") for settings in rotary_settings(config)}
    return ("max_position_embeddings",) if kinds & set(_SCALED_BY_LENGTH) else ()


def _only_in_one(base: Checkpoint, tuned: Checkpoint) -> str:
    deeper, shallower = (base, tuned) if base.n_layers > tuned.n_layers else (tuned, base)
    extra = sorted(deeper.shapes.keys() - shallower.shapes.keys())
    if not extra:
        return ""
    return f" (tensor {extra[0]}: {list(deeper.shapes[extra[0]])} and none)"
