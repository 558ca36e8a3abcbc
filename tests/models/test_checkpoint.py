"""Describing checkpoints, each wrong one with its own words."""

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
from raysweep.models.checkpoint import Checkpoint, describe, find

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
    with pytest.raises(InputError, match=r"a/config\.json is not JSON: .*; save the checkpoint again"):
        describe(checkpoint.source)


def test_a_config_of_no_known_architecture_is_refused(save: Save) -> None:
    checkpoint = save("a")
    with pytest.raises(InputError, match=r"a/config\.json is not a config that transformers knows: .*gigallama"):
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
            r"model\.safetensors has \d+ bytes, but its header says \d+; copy the checkpoint again",
        ),
        (lambda raw: raw[:200], r"model\.safetensors is not a complete safetensors file \(200 bytes\); copy or write"),
        (lambda raw: raw[:5], r"model\.safetensors is not a complete safetensors file \(5 bytes\)"),
        (lambda raw: raw[:8] + b"x" + raw[9:], r"model\.safetensors has an unreadable safetensors header: .*copy the"),
    ],
)
def test_torn_weights_are_refused_with_both_sizes(cut: Any, message: str, save: Save) -> None:
    checkpoint = save("a")
    path = checkpoint.folder / "model.safetensors"
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        describe(checkpoint.source)
