"""What programs leave in config.json of a checkpoint: it loads as if it were not there, or is refused before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import DECODERS, build
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from raysweep.config import parse_config
from raysweep.engine.inspection import inspect
from raysweep.errors import InputError
from raysweep.models.checkpoint import describe
from raysweep.models.expected_tensors import check_tensors
from raysweep.models.loading import load_model
from raysweep.models.pair import check_pair
from raysweep.models.quantisation import check_quantised, is_quantised

TOKENS = torch.arange(24).reshape(2, 12) * 7 % 320
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
LEFT: dict[str, dict[str, Any]] = {
    "flash attention": {"_attn_implementation": "flash_attention_2"},
    "flash attention, by its public name": {"attn_implementation": "flash_attention_3"},
    "flex attention": {"attn_implementation": "flex_attention"},
    "a kernel of the hub": {"attn_implementation": "kernels-community/flash-attn"},
    "tuples for outputs": {"return_dict": False},
    "tuples for outputs, by an old name": {"use_return_dict": False},
    "all states among the outputs": {"output_hidden_states": True, "output_attentions": True},
    "all states, with a kernel that has none": {"output_attentions": True, "attn_implementation": "flash_attention_2"},
    "TorchScript": {"torchscript": True},
    "no cache": {"use_cache": False},
    "bitsandbytes, merged since": {"quantization_config": BNB},
    "GPTQ, dequantised since": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "AWQ, dequantised since": {"quantization_config": {"quant_method": "awq", "bits": 4}},
    "float8, dequantised since": {"quantization_config": {"quant_method": "fp8"}},
    "compressed tensors, dequantised since": {
        "quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    },
    "a method that nobody knows": {"quantization_config": {"quant_method": "of my own"}},
    "dtype auto": {"dtype": "auto"},
    "torch_dtype auto": {"dtype": None, "torch_dtype": "auto"},
    "dtype with torch's name": {"dtype": None, "torch_dtype": "torch.float32"},
    "no dtype": {"dtype": None},
    "remote code": {"auto_map": {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}},
    "a padding token of -1": {"pad_token_id": -1},
    "a padding token beyond the vocabulary": {"pad_token_id": 320},
    "dropout": {"attention_dropout": 0.5},
    "no class": {"architectures": None},
    "a trainer's own keys": {"unsloth_version": "2025.1", "unsloth_fixed": True},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A tiny Llama's folder, and its logits by transformers alone."""
    folder = tmp_path_factory.mktemp("plain")
    model = build(DECODERS["llama"])
    model.save_pretrained(folder)
    return folder, logits(model)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def with_settings(folder: Path, to: Path, settings: dict[str, Any]) -> Path:
    to.mkdir()
    (to / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, **settings}))
    return to


@pytest.mark.parametrize("name", LEFT)
def test_leftovers_change_nothing(name: str, plain: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, expected = plain
    base = describe(str(folder))
    tuned = describe(str(with_settings(folder, tmp_path / "tuned", LEFT[name])))
    check_quantised(tuned, "cpu")
    assert check_tensors(tuned) == ()
    assert check_pair(base, tuned) == ()
    assert tuned.dtype == "float32"
    model = load_model(tuned)
    assert torch.equal(logits(model), expected)
    assert model.config.return_dict


def test_eager_attention_stays(plain: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder = with_settings(plain[0], tmp_path / "eager", {"attn_implementation": "eager"})
    assert load_model(describe(str(folder))).config._attn_implementation == "eager"


def test_a_dtype_that_config_does_not_name_is_the_weights(plain: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    build(DECODERS["llama"]).bfloat16().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": "auto"}))
    assert describe(str(tmp_path)).dtype == "bfloat16"


def packed(tensors: dict[str, torch.Tensor]) -> None:
    weight = tensors.pop("model.layers.1.mlp.up_proj.weight")
    tensors["model.layers.1.mlp.up_proj.qweight"] = torch.zeros(2, 40, dtype=torch.int32)
    tensors["model.layers.1.mlp.up_proj.scales"] = weight[:1].clone()


def with_absmax(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(320, 1, dtype=torch.uint8)
    tensors["model.layers.1.mlp.up_proj.weight.absmax"] = torch.ones(5)


@pytest.mark.parametrize(
    ("change", "settings", "reason"),
    [
        (packed, {"quant_method": "gptq", "bits": 4}, r"is quantised \(gptq\), and cannot be loaded here"),
        (with_absmax, BNB, r"is quantised \(bitsandbytes\), and cannot be loaded here"),
        (packed, {"quant_method": "of my own"}, r"is quantised \(of my own\), and cannot be loaded here"),
        (
            packed,
            None,
            r"has quantised weights \(.*up_proj\.\w+ is stored as \w+\), and its config.json has no quantization_config",
        ),
    ],
)
def test_weights_that_are_quantised_are_refused(
    change: Callable[[dict[str, torch.Tensor]], None],
    settings: dict[str, Any] | None,
    reason: str,
    plain: tuple[Path, torch.Tensor],
    tmp_path: Path,
) -> None:
    folder = with_settings(plain[0], tmp_path / "tuned", {"quantization_config": settings} if settings else {})
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = describe(str(folder))
    assert is_quantised(found)
    with pytest.raises(InputError, match=reason):
        check_quantised(found, "cpu")


def test_float8_without_scales_is_no_quantisation(plain: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder = with_settings(plain[0], tmp_path / "float8", {})
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    found = describe(str(folder))
    assert not is_quantised(found)
    assert torch.equal(load_model(found).get_parameter(name), tensors[name].float())


def test_a_pair_for_two_tasks_is_refused(plain: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    tuned = with_settings(plain[0], tmp_path / "tuned", {"architectures": ["LlamaForSequenceClassification"]})
    with pytest.raises(InputError, match="LlamaForSequenceClassification, which does not"):
        check_pair(describe(str(plain[0])), describe(str(tuned)))


def test_inspection_says_what_settings_differ(plain: tuple[Path, torch.Tensor], tmp_path: Path, tokenizer: Any) -> None:
    base = with_settings(plain[0], tmp_path / "base", {})
    tuned = with_settings(plain[0], tmp_path / "tuned", {"rms_norm_eps": 0.25})
    tokenizer.save_pretrained(base)
    (tmp_path / "d.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    config = parse_config(
        {
            "name": "x",
            "models": [{"name": "m", "base": str(base), "tuned": {"d": str(tuned)}}],
            "datasets": [{"name": "d", "path": str(tmp_path / "d.jsonl"), "format": "gsm8k"}],
            "studies": {"substitution": {"widths": [1]}},
            "storage": str(tmp_path / "run"),
        }
    )
    [said] = inspect(config).warnings
    assert said.startswith("d (for m): base and tuned have different settings: rms_norm_eps (base 1e-06, tuned 0.25)")
