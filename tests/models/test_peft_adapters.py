"""PEFT adapters against PEFT itself: the merged model computes what the adapter does without merging, or it is refused by name.

A sample of the types runs with the other tests; all of them, on bases with and without tied embeddings, in the long tests.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapter_kinds import MERGED, REFUSED, UNLOADABLE, logits, own_logits, plain, trained
from edits import edit_tensors
from peft import LoraConfig, get_peft_model
from peft_warnings import pefts_warnings
from transformers import PreTrainedModel

from raysweep.errors import InputError
from raysweep.models.checkpoint import Checkpoint, describe
from raysweep.models.loading import load_model
from raysweep.models.peft_check import check_adapter
from raysweep.models.peft_merge import merge_adapter
from raysweep.models.peft_types import read_peft_config
from raysweep.models.same import NOTHING, Same, same_in_checkpoints

Build = Callable[..., PreTrainedModel]

TOKENS = torch.tensor([[3, 5, 9, 6, 200, 2], [7, 5, 30, 63, 310, 11]])
SAMPLE = {  # (kind, tied) of the normal tests
    *((kind, tied) for kind in ("rslora", "dora", "tokens") for tied in (False, True)),
    *((kind, False) for kind in ("lora", "pissa", "IA3", "FROD", "UNILORA", "VBLORA", "LN_TUNING", "vera_of_seed")),
    *((kind, True) for kind in ("save_head", "embedding_and_head", "embedding_tied", "tokens_of_head", "OFT")),
    *((kind, True) for kind in ("pissa_by_iterations", "ADAPTION_PROMPT", "replicated_evenly", "PREFIX_TUNING")),
    *((kind, False) for kind in ("lora_bias", "alora", "POLY", "SHADOW", "pvera_sampling", "CPT")),
}


def grid(kinds: dict[str, Any]) -> list[Any]:
    """Every kind on both bases; those not in the sample are long tests."""
    return [
        pytest.param(kind, tied, marks=() if (kind, tied) in SAMPLE else pytest.mark.soak)
        for kind in kinds
        for tied in (False, True)
    ]


@pytest.fixture(scope="module")
def bases(tiny: Build, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Folders of two tiny Llamas, by whether embedding and head are tied; not to be changed."""
    folder = tmp_path_factory.mktemp("bases")
    for tied in (False, True):
        tiny("llama", 2, intermediate_size=32, tie_word_embeddings=tied).save_pretrained(folder / f"base-{tied}")
    return {tied: folder / f"base-{tied}" for tied in (False, True)}


@pytest.fixture(scope="module")
def lora(bases: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained LoRA adapter of the untied base; not to be changed."""
    return trained(bases[False], MERGED["lora"](), tmp_path_factory.mktemp("adapters") / "lora")


@pytest.fixture
def changed(lora: Path, tmp_path: Path) -> Callable[..., Checkpoint]:
    """changed(change of its tensors, **settings): the LoRA adapter with another file or config."""

    def change(edit: Callable[[dict[str, torch.Tensor]], Any] | None = None, **settings: Any) -> Checkpoint:
        folder = shutil.copytree(lora, tmp_path / "changed", dirs_exist_ok=True)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        if edit:
            edit_tensors(folder / "adapter_model.safetensors", edit)
        return describe(str(folder))

    return change


def relative(own: torch.Tensor, other: torch.Tensor) -> float:
    return float((own - other).abs().max() / own.abs().max())


# every type


@pytest.mark.parametrize(("kind", "tied"), grid(MERGED))
def test_a_merged_adapter_computes_what_peft_does(
    kind: str, tied: bool, bases: dict[bool, Path], tmp_path: Path
) -> None:
    folder = trained(bases[tied], MERGED[kind](), tmp_path / "adapter")
    base, adapter = describe(str(bases[tied])), describe(str(folder))
    own = own_logits(bases[tied], folder, TOKENS)
    assert relative(own, logits(plain(bases[tied]), TOKENS)) > 1e-3, "the adapter changes something"
    assert torch.equal(own, own_logits(bases[tied], folder, TOKENS, seed=5)), "and is the same each time it is loaded"
    merged = load_model(adapter, base=base)
    assert relative(own, logits(merged, TOKENS)) <= 1e-5
    assert type(merged) is type(plain(bases[tied]))
    assert not [module for module in merged.modules() if type(module).__module__.startswith("peft")]
    names = set(plain(bases[tied]).state_dict())
    assert set(merged.state_dict()) == names
    assert not any(parameter.requires_grad for parameter in merged.parameters())
    shared = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert merged.config.tie_word_embeddings == shared, "what is saved loads as what it is"


@pytest.mark.parametrize(("kind", "tied"), grid(REFUSED))
def test_what_cannot_be_merged_is_refused(kind: str, tied: bool, bases: dict[bool, Path], tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    base, adapter = describe(str(bases[tied])), describe(str(trained(bases[tied], make(), tmp_path / "adapter")))
    with pytest.raises(InputError, match=rf"PEFT adapter '.*/adapter' .*{message}"):
        check_adapter(adapter, base)
    with pytest.raises(InputError, match=message):
        load_model(adapter, base=base)


@pytest.mark.parametrize("kind", UNLOADABLE)
def test_what_peft_does_not_load_is_refused(
    kind: str, bases: dict[bool, Path], changed: Callable[..., Checkpoint]
) -> None:
    settings, message = UNLOADABLE[kind]
    if kind == "ADAMSS" and importlib.util.find_spec("sklearn"):
        pytest.skip("scikit-learn is installed, so that PEFT knows the type")
    with pytest.raises(InputError, match=message):
        check_adapter(changed(**settings), describe(str(bases[False])))


def test_every_type_of_the_installed_peft_is_among_these() -> None:
    made = {str(make().peft_type.value) for make in (*MERGED.values(), *(make for make, _ in REFUSED.values()))}
    made |= {settings.get("peft_type", "LORA") for settings, _ in UNLOADABLE.values()}
    assert {str(kind.value) for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING} <= made


# other architectures


def _saved(model: PreTrainedModel, config: LoraConfig, folder: Path) -> tuple[Checkpoint, Checkpoint]:
    model.save_pretrained(folder / "base")
    adapter = trained(folder / "base", config, folder / "adapter")
    return describe(str(folder / "base")), describe(str(adapter))


def test_transposed_layers(tiny: Build, tmp_path: Path) -> None:
    config = LoraConfig(r=3, target_modules=["c_attn", "c_proj", "wte"], fan_in_fan_out=True)
    base, adapter = _saved(tiny("gpt2", 2), config, tmp_path)
    own = own_logits(base.folder, adapter.folder, TOKENS)
    assert relative(own, logits(load_model(adapter, base=base), TOKENS)) <= 1e-5


def test_biases_that_the_base_has_can_be_merged(tiny: Build, tmp_path: Path) -> None:
    config = LoraConfig(r=3, target_modules=["q_proj"], lora_bias=True)
    base, adapter = _saved(tiny("llama", 2, attention_bias=True), config, tmp_path)
    own = own_logits(base.folder, adapter.folder, TOKENS)
    assert relative(own, logits(load_model(adapter, base=base), TOKENS)) <= 1e-5


def _architecture(kind: str) -> PreTrainedModel:
    import transformers
    from architectures import DECODERS

    made = DECODERS[kind]
    sizes = {"vocab_size": 320, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = getattr(transformers, made.config)(**(sizes | made.sizes))
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("gemma3", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
        ("mixtral", {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
        pytest.param("zamba2", {"target_modules": "all-linear"}, marks=pytest.mark.soak),
    ],
)
def test_scaled_embeddings_experts_and_shared_layers(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    base, adapter = _saved(_architecture(kind), LoraConfig(r=3, **config), tmp_path)
    own = own_logits(base.folder, adapter.folder, TOKENS)
    tolerance = 1e-4 if kind == "zamba2" else 1e-5  # its recurrence amplifies rounding
    assert relative(own, logits(load_model(adapter, base=base), TOKENS)) <= tolerance


def test_a_model_that_passes_over_an_unmerged_adapter_is_refused(tmp_path: Path) -> None:
    """Jamba multiplies with the weight of dt_proj without calling the layer, so that PEFT's adapter has no effect there."""
    base, adapter = _saved(_architecture("jamba"), LoraConfig(r=3, target_modules=["dt_proj", "q_proj"]), tmp_path)
    with pytest.raises(InputError, match="gives other outputs once it is merged"):
        check_adapter(adapter, base)


# how a merge is checked


def _doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora.layer import Linear

    right = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 2 * right(self, name))


def test_a_wrong_merge_is_found_before_anything_runs(
    bases: dict[bool, Path], lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _doubled(monkeypatch)
    with pytest.raises(
        InputError, match=r"PEFT adapter '.*/lora' of type LORA gives other outputs once it is merged: "
    ):
        check_adapter(describe(str(lora)), describe(str(bases[False])))


def test_a_wrong_merge_is_found_by_the_probe(
    bases: dict[bool, Path], lora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter = describe(str(bases[False])), describe(str(lora))
    own = own_logits(bases[False], lora, TOKENS)
    right = merge_adapter(adapter, base, read_peft_config(adapter), plain(bases[False]))
    assert relative(own, logits(right, TOKENS)) <= 1e-5
    _doubled(monkeypatch)
    with pytest.raises(InputError, match=r"'.*/lora' of type LORA .* on a probe they differ by \d\.?\d*, relative"):
        merge_adapter(adapter, base, read_peft_config(adapter), plain(bases[False]))


@pytest.mark.parametrize("kind", ["lora", "embedding_and_head"])
def test_an_adapter_is_merged_in_float32_and_rounded_once(kind: str, bases: dict[bool, Path], tmp_path: Path) -> None:
    base = describe(str(bases[True]))
    adapter = describe(str(trained(bases[True], MERGED[kind](), tmp_path / "adapter")))
    exact, rounded = load_model(adapter, base=base), load_model(adapter, base=base, dtype="bfloat16")
    assert rounded.dtype == torch.bfloat16
    theirs = dict(rounded.named_parameters(remove_duplicate=False))
    for name, parameter in exact.named_parameters(remove_duplicate=False):
        assert torch.equal(theirs[name], parameter.to(torch.bfloat16)), name
    tables = dict(rounded.named_buffers())
    assert all(torch.equal(tables[name], table) for name, table in exact.named_buffers()), (
        "rotary tables stay as they are"
    )
    assert rounded.config.tie_word_embeddings == exact.config.tie_word_embeddings == (kind == "lora")
    assert not rounded.training


def test_a_map_of_devices(bases: dict[bool, Path], lora: Path) -> None:
    base, adapter = describe(str(bases[False])), describe(str(lora))
    whole = load_model(adapter, base=base).state_dict()
    for dtype in ("float32", "bfloat16"):
        spread = load_model(adapter, base=base, dtype=dtype, device_map={"": "cpu"}).state_dict()
        assert all(torch.equal(spread[name], value.to(spread[name].dtype)) for name, value in whole.items())


def test_a_check_does_not_disturb_what_is_drawn_next(bases: dict[bool, Path], lora: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check_adapter(describe(str(lora)), describe(str(bases[False])))
    assert torch.equal(torch.rand(2), expected)


# names and shapes

FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"


def _renamed(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return rename


@pytest.mark.parametrize("part", ["_orig_mod.", "module.", "_fsdp_wrapped_module."])
@pytest.mark.parametrize("kind", ["lora", "SHIRA", pytest.param("BOFT", marks=pytest.mark.soak)])
def test_a_wrappers_prefix_is_refused(
    part: str, kind: str, bases: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trained(bases[False], MERGED[kind](), tmp_path / "adapter")
    edit_tensors(folder / "adapter_model.safetensors", _renamed("base_model.model.", f"base_model.model.{part}"))
    message = rf"'.*/adapter' does not fit its base '.*/base-False': its tensor names carry '{re.escape(part)}'"
    with pytest.raises(InputError, match=message):
        check_adapter(describe(str(folder)), describe(str(bases[False])))
    monkeypatch.setattr("raysweep.models.made_up._SMALL", 0)  # a base too large to be made up
    with pytest.raises(InputError, match=message):
        check_adapter(describe(str(folder)), describe(str(bases[False])))


def test_a_tensor_that_the_adapter_lacks_is_named(bases: dict[bool, Path], changed: Callable[..., Checkpoint]) -> None:
    with pytest.raises(
        InputError, match=r"it lacks 1 of its tensors, .*layers\.0\.mlp\.down_proj\.lora_A.* among them"
    ):
        check_adapter(changed(lambda tensors: tensors.pop(FIRST)), describe(str(bases[False])))


def test_a_saved_module_that_the_adapter_lacks_is_named(bases: dict[bool, Path], tmp_path: Path) -> None:
    folder = trained(bases[False], MERGED["save_head"](), tmp_path / "adapter")
    edit_tensors(folder / "adapter_model.safetensors", lambda tensors: tensors.pop("base_model.model.lm_head.weight"))
    with pytest.raises(InputError, match=r"it lacks tensor base_model\.model\.lm_head\.weight"):
        check_adapter(describe(str(folder)), describe(str(bases[False])))


def test_biases_that_the_adapter_lacks_are_named(tiny: Build, tmp_path: Path) -> None:
    config = LoraConfig(r=3, target_modules=["q_proj"], bias="lora_only")
    base, adapter = _saved(tiny("llama", 2, attention_bias=True), config, tmp_path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias"
    edit_tensors(adapter.folder / "adapter_model.safetensors", lambda tensors: tensors.pop(name))
    with pytest.raises(InputError, match=rf"it lacks 1 of its tensors, {re.escape(name)} among them"):
        check_adapter(describe(adapter.source), base)


def test_a_tensor_without_a_place_is_named(bases: dict[bool, Path], changed: Callable[..., Checkpoint]) -> None:
    added = "base_model.model.score.weight"
    adapter = changed(lambda tensors: tensors.update({added: torch.ones(2, 16)}))
    with pytest.raises(InputError, match=rf"the base does not have 1 of its tensors, {re.escape(added)} among them"):
        check_adapter(adapter, describe(str(bases[False])))


@pytest.mark.parametrize("modules", [["embed_tokens", "lm_head"], None])
def test_an_enlarged_vocabulary_is_refused_with_both_numbers(
    modules: list[str] | None, bases: dict[bool, Path], tmp_path: Path
) -> None:
    model = plain(bases[False])
    model.resize_token_embeddings(321, mean_resizing=False)
    with pefts_warnings():  # with no modules to save, PEFT saves the resized ones unasked
        config = LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=modules)
        get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    message = (
        r"has shape \[321, 16\], and the base needs \[320, 16\]; the vocabulary was resized from 320 to 321 tokens"
    )
    with pytest.raises(InputError, match=message):
        check_adapter(describe(str(tmp_path / "adapter")), describe(str(bases[False])))


def test_an_adapter_in_a_subfolder_is_pointed_out(bases: dict[bool, Path], tmp_path: Path) -> None:
    folder = trained(bases[False], MERGED["lora"](), tmp_path / "saved", name="mine")
    with pytest.raises(
        InputError, match=r"saved' has no config\.json .*its subfolder 'mine' has an adapter: give .*/saved/mine"
    ):
        describe(str(folder))
    assert describe(str(folder / "mine")).adapter


def test_a_quantised_base_is_refused(bases: dict[bool, Path], lora: Path) -> None:
    base = describe(str(bases[False]))
    packed = replace(base, dtypes={**base.dtypes, "model.layers.0.self_attn.q_proj.qweight": "I32"})
    with pytest.raises(
        InputError, match=r"base '.*base-False' is quantised, and PEFT adapter '.*/lora' cannot be merged"
    ):
        check_adapter(describe(str(lora)), packed)


# warnings


def test_a_setting_that_the_installed_peft_does_not_know_is_a_warning(
    bases: dict[bool, Path], changed: Callable[..., Checkpoint]
) -> None:
    adapter = changed(use_something_new=True, something_off=None, another_off=False)
    [warning] = check_adapter(adapter, describe(str(bases[False]))).warnings
    assert "settings that the installed PEFT does not know and ignores: use_something_new=True;" in warning


def test_projections_that_are_drawn_again_are_a_warning(bases: dict[bool, Path], tmp_path: Path) -> None:
    folder = trained(bases[False], MERGED["vera_of_seed"](), tmp_path / "adapter")
    [warning] = check_adapter(describe(str(folder)), describe(str(bases[False]))).warnings
    assert "save_projection=False" in warning


def test_another_base_is_a_warning_with_both_names(bases: dict[bool, Path], changed: Callable[..., Checkpoint]) -> None:
    base = describe(str(bases[False]))
    assert check_adapter(changed(), base).warnings == ()
    [warning] = check_adapter(changed(base_model_name_or_path="acme/llama-chat", revision="v2"), base).warnings
    assert "was trained on 'acme/llama-chat' (revision v2)" in warning
    assert f"is merged into '{bases[False]}'" in warning


# what an adapter leaves alone


def _zeroed(*layers: int, factor: str = "lora_B") -> Callable[[dict[str, torch.Tensor]], None]:
    def zero(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if factor in name and any(f".layers.{layer}." in name for layer in layers):
                tensor.zero_()

    return zero


@pytest.mark.parametrize(
    ("edit", "same"),
    [
        (None, Same(frozenset(), True)),
        (_zeroed(0, 1), Same(frozenset({0, 1}), True)),
        (_zeroed(0, 1, factor="lora_A"), Same(frozenset({0, 1}), True)),
        (_zeroed(1), Same(frozenset({1}), True)),
    ],
)
def test_layers_whose_updates_are_zero_are_the_bases(
    edit: Any, same: Same, bases: dict[bool, Path], changed: Callable[..., Checkpoint]
) -> None:
    adapter, base = changed(edit), describe(str(bases[False]))
    assert same_in_checkpoints(base, adapter) == same
    merged, plainly = load_model(adapter, base=base), plain(bases[False])
    for layer in range(2):
        ours, theirs = merged.model.layers[layer].state_dict(), plainly.model.layers[layer].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours) == (layer in same.layers)


@pytest.mark.parametrize(
    ("kind", "same"), [("dora", NOTHING), ("pissa", NOTHING), ("save_head", Same(frozenset({0, 1}), False))]
)
def test_zero_factors_do_not_make_every_adapter_idle(
    kind: str, same: Same, bases: dict[bool, Path], tmp_path: Path
) -> None:
    folder = trained(bases[False], MERGED[kind](), tmp_path / "adapter")
    edit_tensors(folder / "adapter_model.safetensors", _zeroed(0, 1))
    found = same_in_checkpoints(describe(str(bases[False])), describe(str(folder)))
    assert found.layers == same.layers
    assert found.rest == (same.rest or kind in ("dora", "pissa"))


@pytest.mark.parametrize(("modules", "left"), [(["q_proj"], set()), (r".*\.1\..*q_proj", {0})])
def test_an_adapter_without_tensors_of_its_layers_changes_them_all_the_same(
    modules: Any, left: set[int], bases: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """UniLoRA stores one vector for all layers, and draws from a seed where its values go."""
    config = peft.UniLoraConfig(r=4, theta_d_length=32, target_modules=modules)
    adapter = describe(str(trained(bases[False], config, tmp_path / "adapter")))
    assert all("layers" not in name for name in adapter.shapes)
    assert same_in_checkpoints(describe(str(bases[False])), adapter).layers == left
    monkeypatch.setattr("raysweep.models.made_up._SMALL", 0)  # PEFT places this type on no base without weights
    assert same_in_checkpoints(describe(str(bases[False])), adapter) == NOTHING
