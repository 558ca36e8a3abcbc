"""Stored tensors against the model that a config makes: nothing missing, nothing passed over, no wrapper's names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import DECODERS, ENCODERS, WRAPPERS, build
from safetensors.torch import load_file, save_file

from raysweep.errors import InputError
from raysweep.models.checkpoint import describe
from raysweep.models.expected_tensors import check_tensors

Tensors = dict[str, torch.Tensor]


def spoiled(folder: Path, change: Callable[[Tensors], Tensors] | None = None, **settings: object) -> Path:
    """A tiny Llama's folder with its tensors changed and its config's settings replaced."""
    build(DECODERS["llama"], attention_bias=True).save_pretrained(folder)
    if change is not None:
        tensors = change(load_file(folder / "model.safetensors"))
        save_file(
            {name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
        )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new, 1): value for name, value in tensors.items()}


def check(folder: Path) -> tuple[str, ...]:
    return check_tensors(describe(str(folder)))


@pytest.mark.parametrize(
    ("prefix", "who"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DataParallel"),
        ("base_model.model.", "PEFT"),
        ("_fsdp_wrapped_module.", "FSDP"),
    ],
)
def test_a_wrappers_prefix_is_named(prefix: str, who: str, tmp_path: Path) -> None:
    folder = spoiled(tmp_path, lambda tensors: {f"{prefix}{name}": value for name, value in tensors.items()})
    with pytest.raises(InputError, match=f"{who}.* adds '{prefix}' to the names") as refused:
        check(folder)
    assert str(folder) in str(refused.value)


def test_a_wrapper_in_the_middle_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"q_proj\.base_layer\.weight.*adds 'base_layer\.' to the names"):
        check(spoiled(tmp_path, renamed("q_proj.weight", "q_proj.base_layer.weight")))


def test_a_layer_beyond_the_configs_depth_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tensors that its config does not include, model\.layers\.3\."):
        check(spoiled(tmp_path, num_hidden_layers=3))


def test_biases_that_the_config_forgets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 16 tensors that its config does not include.*self_attn\.k_proj\.bias"):
        check(spoiled(tmp_path, attention_bias=False))


def test_biases_that_only_the_config_has_are_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks 12 weights, model\.layers\.0\.mlp\.down_proj\.bias among them"):
        check(spoiled(tmp_path, mlp_bias=True))


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    def without(tensors: Tensors) -> Tensors:
        return {name: value for name, value in tensors.items() if ".layers.2." not in name}

    with pytest.raises(InputError, match=r"lacks 13 weights, model\.layers\.2\."):
        check(spoiled(tmp_path, without))


def test_tensors_saved_empty_are_explained(tmp_path: Path) -> None:
    def emptied(tensors: Tensors) -> Tensors:
        return {name: value[:0] if ".layers." in name else value for name, value in tensors.items()}

    with pytest.raises(InputError, match=r"tensors without values.*ZeRO-3"):
        check(spoiled(tmp_path, emptied))


def test_a_missing_head_is_found_where_nothing_ties_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks 1 weights, lm_head\.weight"):
        check(spoiled(tmp_path, lambda tensors: {n: v for n, v in tensors.items() if n != "lm_head.weight"}))


def test_a_tied_head_may_be_stored_or_not(tmp_path: Path) -> None:
    for name, kept in (("with", ("",)), ("without", ("lm_head.",))):
        folder = spoiled(tmp_path / name, tie_word_embeddings=True)
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        chosen = {n: v for n, v in tensors.items() if not any(k and n.startswith(k) for k in kept)}
        save_file(chosen, folder / "model.safetensors", {"format": "pt"})
        assert check(folder) == ()


def test_old_buffers_are_harmless(tmp_path: Path) -> None:
    def with_buffers(tensors: Tensors) -> Tensors:
        old = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(4)}
        return {
            **tensors,
            **old,
            "model.position_ids": torch.arange(4),
            "model.layers.0.attention.masked_bias": torch.ones(1),
        }

    assert check(spoiled(tmp_path, with_buffers)) == ()


def test_heads_and_towers_that_are_not_measured_are_named_and_pass(tmp_path: Path) -> None:
    def with_more(tensors: Tensors) -> Tensors:
        return {
            **tensors,
            "score.weight": torch.ones(2, 16),
            "v_head.summary.weight": torch.ones(1, 16),
            "vision_tower.layers.0.w": torch.ones(2),
        }

    assert check(spoiled(tmp_path, with_more)) == ("score.weight", "v_head.summary.weight", "vision_tower.layers.0.w")


def test_settings_that_make_no_model_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json do not build a model that runs \(TypeError"):
        check(spoiled_gemma(tmp_path, sliding_window=None))
    with pytest.raises(InputError, match=r"config\.json"):
        check(spoiled_gemma(tmp_path, num_attention_heads=0))


def spoiled_gemma(folder: Path, **settings: object) -> Path:
    build(DECODERS["gemma2"]).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


@pytest.mark.parametrize("kind", [*DECODERS, *WRAPPERS])
def test_what_transformers_writes_is_whole(kind: str, tmp_path: Path) -> None:
    build({**DECODERS, **WRAPPERS}[kind]).save_pretrained(tmp_path)
    assert check(tmp_path) == ()


@pytest.mark.parametrize(("kind", "cls"), [(kind, cls) for kind, tiny in ENCODERS.items() for cls in tiny.classes])
def test_models_without_a_head_pass_with_whatever_head_they_were_saved(kind: str, cls: str, tmp_path: Path) -> None:
    build(ENCODERS[kind], cls=cls).save_pretrained(tmp_path)
    check(tmp_path)  # what is passed over is the head's
