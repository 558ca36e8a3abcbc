"""Rotary tables that depend on how long a text is, and what that asks of batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from raysweep.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def rotary_settings(config: PreTrainedConfig) -> Iterator[Mapping[str, Any]]:
    """The rotary settings of a text config: one, or one a kind of layer; none for a model without."""
    settings = getattr(config, "rope_parameters", None) or {}
    nested = [part for part in settings.values() if isinstance(part, dict)]
    yield from nested or ([settings] if settings else [])


def rotary_table(config: PreTrainedConfig, length: int) -> int:
    """Which of the model's rotary tables a text of `length` tokens gets; 0 for most models, whatever the length.

    `longrope` has one table for texts up to a length and another beyond it. The model takes that of a batch's longest row,
    so rows of unlike tables must not share a batch: the shorter would be measured with the wrong one. Raises InputError
    where the table would depend on what the model has read before (`dynamic`, beyond the length it was made for).
    """
    table = 0
    for settings in rotary_settings(config):
        kind = str(settings.get("rope_type"))
        if kind == "longrope":
            table += length > settings["original_max_position_embeddings"]
        elif "dynamic" in kind and length > config.max_position_embeddings:
            raise InputError(
                f"a text of {length} tokens is longer than the model's max_position_embeddings "
                f"{config.max_position_embeddings}, beyond which its rotary tables ('{kind}') depend on the texts it "
                f"has read before; set max_tokens to {config.max_position_embeddings} or less"
            )
    return table
