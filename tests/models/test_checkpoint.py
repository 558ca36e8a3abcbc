"""Describing and pairing checkpoints, each wrong one with its own words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import edit_config, edit_tensors
from safetensors.torch import save_file
from transformers import PreTrainedModel

from raysweep import lab
from raysweep.errors import InputError
from raysweep.models.checkpoint import (
    Checkpoint,
    check_pair,
    describe,
    find,
)

Build = Callable[..., PreTrainedModel]
Save = Callable[..., Checkpoint]


def test_a_description_has_the_models_shapes_and_the_files_bytes(save: Save, tiny: Build) -> None:
    checkpoint = save("a", layers=5)
    model = tiny("llama", 5)
    assert checkpoint.shapes == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert checkpoint.n_parameters == sum(p.numel() for p in model.parameters())
    assert checkpoint.bytes == (checkpoint.folder / "model.safetensors").stat().st_size
    assert (checkpoint.n_layers, checkpoint.dtype, checkpoint.adapter) == (5, "float32", False)


def test_a_checkpoint_in_several_files_is_one(tiny: Build, tmp_path: Path) -> None:
    model = tiny("llama", 5)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    files = list(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    checkpoint = describe(str(tmp_path))
    assert checkpoint.shapes == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert checkpoint.bytes == sum(path.stat().st_size for path in files)


def test_weights_that_transformers_does_not_load_do_not_count(save: Save) -> None:
    checkpoint = save("a")
    save_file({"tok_embeddings.weight": torch.zeros(9, 9)}, checkpoint.folder / "consolidated.safetensors")
    assert describe(checkpoint.source) == checkpoint


def test_the_fingerprint_is_that_of_the_contents(save: Save, tmp_path: Path) -> None:
    first = save("a").fingerprint
    copied = shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "b")
    assert describe(str(copied)).fingerprint == first
    edit_tensors(copied / "model.safetensors", lambda t: t["model.layers.2.mlp.up_proj.weight"][1, 3].add_(1e-6))
    changed = describe(str(copied)).fingerprint
    assert changed != first
    edit_config(describe(str(tmp_path / "a")), rms_norm_eps=1e-5)
    assert describe(str(tmp_path / "a")).fingerprint not in (first, changed)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "falcon"])
def test_depth_and_width_are_read_whatever_the_architecture_calls_them(kind: str, save: Save) -> None:
    checkpoint = save("a", kind, layers=6)
    assert checkpoint.n_layers == 6
    assert checkpoint.config["hidden_size"] == 16
    assert checkpoint.config["vocab_size"] == 320


def test_gpt2_writes_other_names_than_those_described(save: Save) -> None:
    checkpoint = save("a", "gpt2", layers=6)
    written = json.loads((checkpoint.folder / "config.json").read_text())
    assert written["n_layer"] == 6
    assert "num_hidden_layers" not in written


def test_the_stored_dtype_is_told(tiny: Build, tmp_path: Path) -> None:
    tiny("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    assert describe(str(tmp_path)).dtype == "bfloat16"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"checkpoint '.*/nowhere' does not exist; give a folder written by save_pre"):
        describe(str(tmp_path / "nowhere"))


def test_a_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"checkpoint '.*weights\.bin' is a file, not a checkpoint folder"):
        describe(str(tmp_path / "weights.bin"))


def test_an_unknown_laboratory_name_is_told_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"the laboratory has no 'lab://tniy'; did you mean 'tiny'\?"):
        find("lab://tniy")


def test_a_laboratory_name_is_found() -> None:
    assert find("lab://tiny") == lab.names()["tiny"]


def test_a_folder_without_config_is_refused(save: Save) -> None:
    checkpoint = save("a")
    (checkpoint.folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"checkpoint '.*/a' has no config\.json \(.*/a\); is it the folder that"):
        describe(checkpoint.source)


def test_a_config_that_is_not_json_is_refused(save: Save) -> None:
    checkpoint = save("a")
    (checkpoint.folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(InputError, match=r"a/config\.json is not JSON: .*; write the checkpoint again"):
        describe(checkpoint.source)


def test_a_config_of_no_known_architecture_is_refused(save: Save) -> None:
    checkpoint = save("a")
    with pytest.raises(InputError, match=r"a/config\.json is no config that transformers knows: .*gigallama"):
        edit_config(checkpoint, drop=("num_hidden_layers",), model_type="gigallama")


def test_a_folder_without_weights_is_refused(save: Save) -> None:
    checkpoint = save("a")
    (checkpoint.folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"checkpoint '.*/a' has no weights \(\*\.safetensors\) in .*/a"):
        describe(checkpoint.source)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (
            lambda raw: raw[:-1],
            r"model\.safetensors has \d+ bytes where its header tells \d+; copy the checkpoint again",
        ),
        (lambda raw: raw[:200], r"model\.safetensors is no whole safetensors file \(200 bytes\); copy or write"),
        (lambda raw: raw[:5], r"model\.safetensors is no whole safetensors file \(5 bytes\)"),
        (lambda raw: raw[:8] + b"x" + raw[9:], r"model\.safetensors has an unreadable safetensors header: .*copy the"),
    ],
)
def test_torn_weights_are_refused_with_both_sizes(cut: Any, message: str, save: Save) -> None:
    checkpoint = save("a")
    path = checkpoint.folder / "model.safetensors"
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        describe(checkpoint.source)


# pairs


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
            r"differ in rope_parameters: .*10000.* and .*500000.*; a layer put back would see the other",
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
