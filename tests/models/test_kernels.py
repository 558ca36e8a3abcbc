"""Nothing that a checkpoint names is imported, fetched, or run, and attention is the one that transformers chooses by itself."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raysweep import lab
from raysweep.errors import InputError
from raysweep.models.checkpoint import describe, standard_config
from raysweep.models.kernels import without_kernels
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.models.peft_types import read_peft_config
from raysweep.models.skeleton import empty_model

PLANTED = "planted_module"


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A module that must not be imported, in a folder that modules are imported from; and no way to fetch one."""
    (tmp_path / f"{PLANTED}.py").write_text("raise AssertionError('it was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))

    def fetched(*args, **kwargs):
        raise AssertionError(f"it was asked for: {args} {kwargs}")

    for place in (
        "transformers.modeling_utils.lazy_import_flash_attention",
        "transformers.integrations.hub_kernels.get_kernel",
        "transformers.dynamic_module_utils.get_cached_module_file",
        "huggingface_hub.snapshot_download",
    ):
        monkeypatch.setattr(place, fetched)
    yield PLANTED
    assert PLANTED not in sys.modules


def changed(folder: Path, file: str, **settings: object) -> Path:
    shutil.copytree(lab.resolve("lab://tiny"), folder)
    path = folder / file
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, **settings}))
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {"attn_implementation": f"{PLANTED}/kernel"},
        {"_attn_implementation": f"{PLANTED}/kernel@main:forward"},
        {"_attn_implementation_internal": f"{PLANTED}/kernel"},
        {"attn_implementation": {"": f"{PLANTED}/kernel"}},
        {"attn_implementation": "flash_attention_2"},
        {
            "experts_implementation": "sonicmoe",
            "use_kernels": True,
            "kernel_config": {"kernel_mapping": {"RMSNorm": PLANTED}},
        },
        {"auto_map": {"AutoConfig": f"{PLANTED}.Config", "AutoModelForCausalLM": f"{PLANTED}.Model"}},
    ],
    ids=str,
)
def test_code_that_a_config_names_is_not_loaded(settings, tmp_path, planted):
    found = describe(str(changed(tmp_path / "changed", "config.json", **settings)))
    model = load_model(found)
    assert model.config._attn_implementation == "sdpa"
    expected = load_model(describe("lab://tiny"))
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(tokens).logits, expected(tokens).logits)


def test_kernels_are_dropped_inside_configs_too():
    foreign = {"attn_implementation": "a/b", "hidden_size": 8}
    raw = {"model_type": "x", "vision_config": foreign, "parts": [{"deep": foreign}], "_attn_implementation": "eager"}
    plain = {"hidden_size": 8}
    assert without_kernels(raw) == {**raw, "vision_config": plain, "parts": [{"deep": plain}]}


@pytest.mark.parametrize("file", ["generation_config.json", "tokenizer_config.json"])
def test_code_that_other_files_name_is_not_loaded(file, tmp_path, planted):
    folder = changed(
        tmp_path / "changed",
        file,
        custom_generate=f"{PLANTED}/decoding",
        auto_map={"AutoTokenizer": [f"{PLANTED}.Slow", f"{PLANTED}.Fast"]},
        assistant_model=f"{PLANTED}/model",
    )
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise AssertionError('it was run')")
    found = describe(str(folder))
    load_tokenizer(found)
    load_model(found).generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, do_sample=False)


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        ("LORA", {"megatron_config": {"a": 1}, "megatron_core": PLANTED}, "megatron_config"),
        ("SHADOW", {"shadow_model": f"{PLANTED}/model"}, "shadow_model"),
    ],
)
def test_an_adapter_that_names_code_or_models_is_refused(kind, settings, name, tmp_path, planted):
    from raysweep.models.checkpoint import Checkpoint

    config = {"peft_type": kind, "target_modules": ["q_proj"], **settings}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"adapter_config.json has {name} .*never runs code that a checkpoint names"):
        read_peft_config(Checkpoint("x", tmp_path, config, {}, 0, True, ""))


@pytest.mark.parametrize(
    "model_type",
    ["llama", "gpt2", "mamba", "bert", "gemma3_text", "mixtral", "bloom", "falcon", "opt", "gpt_neox", "phi3"],
)
def test_attention_is_what_transformers_chooses(model_type, tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **small}))
    config = standard_config(tmp_path)
    theirs = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(theirs) if model_type != "bert" else None
    if expected is not None:
        assert config._attn_implementation == expected.config._attn_implementation


def test_the_attention_is_set_before_a_model_is_built():
    config = standard_config(Path(lab.resolve("lab://tiny")))
    assert config._attn_implementation == "sdpa"
    assert empty_model(describe("lab://tiny"), torch.float32).config._attn_implementation == "sdpa"
