"""Loading checkpoints, adapters and tokenizers, each wrong one with its own words."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import ALPHA, RANK, edit_config, edit_tensors
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint, describe
from raysweep.models.loading import load_model, load_tokenizer, resolve_dtype

Build = Callable[..., PreTrainedModel]
Save = Callable[..., Checkpoint]


# loading


@pytest.mark.parametrize(
    ("asked", "stored", "device", "resolved"),
    [
        ("auto", "bfloat16", "cpu", "float32"),
        ("auto", "bfloat16", "cuda", "bfloat16"),
        ("auto", "float16", "mps", "float16"),
        ("float16", "bfloat16", "cpu", "float16"),
        ("float32", "bfloat16", "cuda:1", "float32"),
    ],
)
def test_the_dtype_to_compute_in(asked: str, stored: str, device: str, resolved: str) -> None:
    assert resolve_dtype(asked, stored, device) == resolved


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_gives_the_stored_weights_in_the_asked_dtype(dtype: str, save: Save, tiny: Build) -> None:
    loaded = load_model(save("a"), dtype=dtype)
    assert not loaded.training
    for (name, parameter), (other, stored) in zip(
        loaded.named_parameters(), tiny("llama").named_parameters(), strict=True
    ):
        assert name == other
        assert not parameter.requires_grad
        assert torch.equal(parameter, stored.to(getattr(torch, dtype)))


def test_missing_weights_are_refused(save: Save) -> None:
    checkpoint = save("a")
    gone = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(checkpoint.folder / "model.safetensors", lambda tensors: tensors.pop(gone))
    with pytest.raises(
        InputError, match=rf"checkpoint '.*/a' lacks 1 weights, {gone} among them; it would run with random"
    ):
        load_model(describe(checkpoint.source))


def test_weights_of_another_shape_than_the_configs_are_refused(save: Save) -> None:
    checkpoint = edit_config(save("a"), intermediate_size=44)
    with pytest.raises(InputError, match=r"checkpoint '.*/a' could not be loaded: "):
        load_model(checkpoint)


def test_a_pickle_that_runs_code_is_not_run(save: Save, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "sprung"),))

    checkpoint = save("a")
    (checkpoint.folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Trap()}, checkpoint.folder / "pytorch_model.bin")
    with pytest.raises(
        InputError, match=r"checkpoint '.*/a' has \.bin weights that are not plain tensors, and raysweep"
    ):
        load_model(describe(checkpoint.source))
    assert not (tmp_path / "sprung").exists()


def test_the_tokenizer_comes_with_the_checkpoint(save: Save, tokenizer: PreTrainedTokenizerBase) -> None:
    checkpoint = save("a")
    tokenizer.save_pretrained(checkpoint.folder)
    checkpoint = describe(str(checkpoint.folder))
    assert load_tokenizer(checkpoint)("a red fruit")["input_ids"] == tokenizer("a red fruit")["input_ids"]


def test_a_checkpoint_without_a_tokenizer_is_refused(save: Save) -> None:
    with pytest.raises(InputError, match=r"checkpoint '.*/a' has no usable tokenizer: "):
        load_tokenizer(save("a"))


# PEFT adapters


def test_a_merged_adapter_is_the_base_with_its_update_added(save: Save, save_lora: Save, tiny: Build) -> None:
    base, lora = save("base"), save_lora("lora")
    factors = load_file(lora.folder / "adapter_model.safetensors")
    merged = load_model(lora, base=base)
    touched = 0
    for (name, parameter), (other, weight) in zip(
        merged.named_parameters(), tiny("llama").named_parameters(), strict=True
    ):
        assert name == other
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        expected = weight.detach().double()
        if f"{stem}.lora_A.weight" in factors:
            A, B = (factors[f"{stem}.lora_{factor}.weight"].double() for factor in "AB")
            expected = expected + ALPHA / RANK * B @ A
            touched += 1
            assert (expected - weight).abs().max() > 0.01
        torch.testing.assert_close(parameter.double(), expected, rtol=0, atol=1e-6)
        assert not parameter.requires_grad
    assert touched == 2 * 4
    assert type(merged) is type(tiny("llama"))


def test_an_adapter_needs_its_base(save_lora: Save) -> None:
    with pytest.raises(InputError, match=r"'.*/lora' is a PEFT adapter; give the base checkpoint that it belongs to"):
        load_model(save_lora("lora"))


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"width": 24}, r"its tensor .*layers\.0\.mlp\.down_proj\.lora_B.* has shape \[16, 3\].* needs \[24, 3\]"),
        (
            {"layers": 3},
            r"the base does not have 4 of its tensors, .*layers\.3\.mlp\.down_proj\.lora_A.* among them",
        ),
        ({"layers": 5}, r"it lacks 4 of its tensors, .*layers\.4\.mlp\.down_proj\.lora_A.* among them"),
        ({"kind": "gpt2"}, r"[Tt]arget modules .*not found"),
    ],
)
def test_an_adapter_of_another_base_is_refused(base: dict[str, Any], message: str, save: Save, save_lora: Save) -> None:
    with pytest.raises(InputError, match=rf"^PEFT adapter '.*/lora' does not fit its base '.*/base': .*{message}"):
        load_model(save_lora("lora"), base=save("base", **base))


def test_an_adapter_with_nan_in_it_is_refused(save: Save, save_lora: Save) -> None:
    lora = save_lora("lora")
    name = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"
    edit_tensors(lora.folder / "adapter_model.safetensors", lambda tensors: tensors[name].fill_(torch.nan))
    with pytest.raises(
        InputError, match=rf"lora/adapter_model\.safetensors: tensor {name} of layer 2 has a weight that is not finite"
    ):
        describe(lora.source)


def test_an_adapter_that_changes_no_weights_is_refused(save: Save, tiny: Build, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's own, about transformers
        get_peft_model(tiny("llama"), config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(InputError, match=r"'.*/prompt' is of type PROMPT_TUNING, which changes no layer's weights"):
        load_model(describe(str(tmp_path / "prompt")), base=save("base"))
