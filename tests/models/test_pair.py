"""Pairs of checkpoints: what is one, and how each that is none is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from edits import edit_config
from transformers import PreTrainedModel

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint
from raysweep.models.pair import check_pair

Build = Callable[..., PreTrainedModel]
Save = Callable[..., Checkpoint]


def test_a_model_and_its_fine_tuned_self_are_a_pair(save: Save) -> None:
    check_pair(save("base"), save("tuned", seed=1))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"kind": "qwen3"}, r"are different architectures: llama and qwen3; a pair must be one model before and after"),
        ({"width": 24}, r"differ in tensor lm_head\.weight: \[320, 16\] and \[320, 24\]; .* same width and vocabulary"),
        ({"vocab_size": 321}, r"differ in tensor lm_head\.weight: \[320, 16\] and \[321, 16\]"),
        ({"intermediate_size": 48}, r"in tensor model\.layers\.0\.mlp\.down_proj\.weight: \[16, 40\] and \[16, 48\]"),
        (
            {"layers": 6},
            r"differ in depth: 4 and 6 decoder layers \(tensor model\.layers\.4\.input_layernorm\.weight: \[16\] and none\)",
        ),
        (
            {"rope_theta": 5e5},
            r"differ in rope_parameters: .*10000.* and .*500000.*; a layer of the base model in the tuned model would "
            r"use the wrong",
        ),
    ],
)
def test_unlike_checkpoints_are_no_pair(other: dict[str, Any], message: str, save: Save) -> None:
    if "rope_theta" in other:
        other = {"rope_parameters": {"rope_type": "default", "rope_theta": other["rope_theta"]}}
    base, tuned = save("base"), save("tuned", **other)
    with pytest.raises(InputError, match=rf"^base '.*/base' and tuned '.*/tuned' {'.*' + message}"):
        check_pair(base, tuned)


def test_as_many_heads_of_another_size_are_told_though_every_shape_agrees(save: Save) -> None:
    heads = {"num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 4}
    base, tuned = save("base", **heads), save("tuned", **(heads | {"num_key_value_heads": 1, "head_dim": 4}))
    with pytest.raises(
        InputError, match=r"differ in tensor model\.layers\.0\.self_attn\.k_proj\.weight: \[8, 16\] and"
    ):
        check_pair(base, tuned)
    same_shapes = save("other", num_key_value_heads=1, num_attention_heads=2, head_dim=8)
    with pytest.raises(InputError, match=r"differ in num_attention_heads: 4 and 2$"):
        check_pair(base, same_shapes)


def test_a_setting_written_the_old_way_is_the_same_setting(save: Save) -> None:
    base, tuned = save("base", num_key_value_heads=4), save("tuned", num_key_value_heads=4, seed=1)
    old = edit_config(
        base, drop=("rope_parameters", "num_key_value_heads", "head_dim"), rope_theta=1e4, rope_scaling=None
    )
    check_pair(old, tuned)
    check_pair(tuned, old)
    with pytest.raises(InputError, match="differ in rope_parameters"):
        check_pair(edit_config(base, rope_theta=2e4), tuned)


def test_the_longest_text_matters_only_where_rotary_tables_depend_on_it(save: Save) -> None:
    base = save("base")
    check_pair(base, save("longer", max_position_embeddings=512))
    scaled = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    base, tuned = save("scaled", **scaled), save("scaled-longer", **scaled, max_position_embeddings=512)
    with pytest.raises(InputError, match=r"differ in max_position_embeddings: 64 and 512; .* rotary tables"):
        check_pair(base, tuned)


def test_gpt2_checkpoints_are_compared_under_the_standard_names(save: Save) -> None:
    check_pair(save("base", "gpt2"), save("tuned", "gpt2", seed=1))
    with pytest.raises(InputError, match=r"differ in depth: 4 and 5 decoder layers \(tensor transformer\.h\.4\."):
        check_pair(save("base", "gpt2"), save("tuned", "gpt2", layers=5))
    with pytest.raises(InputError, match=r"differ in num_attention_heads: 4 and 2"):
        check_pair(save("base", "gpt2"), save("tuned", "gpt2", n_head=2))


def test_an_adapter_is_no_base(save: Save, save_lora: Save) -> None:
    with pytest.raises(
        InputError, match=r"base '.*/lora' is a PEFT adapter; give the full checkpoint that it was train"
    ):
        check_pair(save_lora("lora"), save("full"))


def test_an_adapter_may_be_the_tuned_one(save: Save, save_lora: Save) -> None:
    lora = save_lora("lora")
    assert lora.adapter
    check_pair(save("base"), lora)
