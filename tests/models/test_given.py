"""Models as users have them: what is unwrapped, and what is refused by name with what to do instead."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from raysweep.errors import InputError
from raysweep.models.adapter import Adapter
from raysweep.models.given import check_alike, check_distinct, plain_model, unwrapped

Build = Callable[..., PreTrainedModel]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*checkpointing.* is deprecated:FutureWarning"
)  # PEFT's, about transformers


def peft_model(model: PreTrainedModel, **settings: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **settings}))


# --- one model ----------------------------------------------------------------------------------------------------


def test_wrappers_that_change_no_result_are_removed(tiny: Build) -> None:
    model = tiny("llama")
    assert plain_model(model) is model
    assert plain_model(torch.compile(model, backend="eager")) is model
    assert plain_model(nn.DataParallel(torch.compile(model, backend="eager"))) is model
    assert unwrapped("lab://tiny") == "lab://tiny"


def test_a_wrapper_with_hooks_is_refused(tiny: Build) -> None:
    wrapper = nn.DataParallel(tiny("llama"))
    wrapper.register_forward_hook(lambda module, args, output: output)
    with pytest.raises(
        InputError, match=r"the DataParallel around a LlamaForCausalLM has forward hooks.*register the hooks"
    ):
        plain_model(wrapper)
    model = tiny("llama")
    layers = model.model.layers
    layers[1] = torch.compile(layers[1], backend="eager")
    plain_model(model)
    layers[1].register_forward_pre_hook(lambda module, args: args)
    with pytest.raises(InputError, match=r"the OptimizedModule around a LlamaDecoderLayer has forward hooks"):
        plain_model(model)


@pytest.mark.parametrize("given", [None, 3, "lab://tiny", {}, PreTrainedModel, lambda: None])
def test_what_is_no_model_is_refused(given: object) -> None:
    with pytest.raises(InputError, match=f"^base is of type {type(given).__name__}; give a loaded transformers model$"):
        plain_model(given, "base")


def test_modules_that_transformers_does_not_know_are_refused(tiny: Build) -> None:
    with pytest.raises(InputError, match=r"^model is of type Linear, which is not a transformers model; give"):
        plain_model(nn.Linear(2, 2))

    class WithValueHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pretrained_model = tiny("llama")

    with pytest.raises(InputError, match=r"of type WithValueHead.*; its \.pretrained_model is one; give"):
        plain_model(WithValueHead())


def test_a_peft_adapter_that_is_not_merged_is_refused_wherever_it_is(tiny: Build) -> None:
    wrapped = peft_model(tiny("llama"))
    with pytest.raises(
        InputError, match=r"^tuned is a PeftModel \(LORA\) whose adapter is not merged; give copy\.deepcopy"
    ):
        plain_model(wrapped, "tuned")
    inner = wrapped.base_model.model
    said = r"has a PEFT adapter in it that is not merged \(model\.layers\.0\.self_attn\.q_proj is PEFT's\).*in place"
    with pytest.raises(InputError, match=said):
        plain_model(inner)
    with pytest.raises(InputError, match=said):
        Adapter(inner)
    wrapped.merge_adapter()  # the weights are merged, but the layers are still PEFT's
    with pytest.raises(InputError, match=said):
        plain_model(inner)
    merged = peft_model(tiny("llama")).merge_and_unload()
    assert plain_model(merged) is merged


def test_an_adapter_that_transformers_put_in_is_refused(tiny: Build) -> None:
    from peft import LoraConfig

    model = tiny("llama")
    model.add_adapter(LoraConfig(r=2, target_modules=["up_proj"]))
    with pytest.raises(InputError, match=r"mlp\.up_proj is PEFT's"):
        plain_model(model)


def test_prompt_learning_is_refused_as_what_cannot_be_merged(tiny: Build) -> None:
    from peft import PromptTuningConfig, get_peft_model

    wrapped = get_peft_model(tiny("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(InputError, match=r"\(PROMPT_TUNING\), whose adapter changes the prompt.*cannot be merged"):
        plain_model(wrapped)


def test_a_model_without_weights_is_refused(tiny: Build) -> None:
    with torch.device("meta"):
        empty = tiny("llama")
    with pytest.raises(
        InputError, match=r"^model has no weights: .* is on the meta device; load it with from_pretrained"
    ):
        plain_model(empty)


def test_sharded_weights_are_refused(tiny: Build) -> None:
    class Sharded(nn.Parameter):
        device_mesh = "as a DTensor has it"

    model = tiny("llama")
    model.lm_head.weight = Sharded(model.lm_head.weight.detach())
    with pytest.raises(
        InputError, match=r"^model has the sharded parameter lm_head.weight; each process has only a part"
    ):
        plain_model(model)


# --- two models ---------------------------------------------------------------------------------------------------


def test_two_models_of_their_own_share_nothing(tiny_pair: Any, tiny: Build) -> None:
    check_distinct(*tiny_pair("llama"))
    check_distinct(tiny("gpt2"), tiny("gpt2"))  # tied inside each
    check_distinct("lab://tiny", tiny("llama"))


def test_one_object_twice_is_refused(tiny: Build) -> None:
    model = tiny("llama")
    for other in (model, torch.compile(model, backend="eager"), nn.DataParallel(model)):
        with pytest.raises(InputError, match=r"the same model object.*Load base again"):
            check_distinct(model, other)


def test_a_peft_model_made_on_the_base_object_is_refused(tiny: Build) -> None:
    base = tiny("llama")
    wrapped = peft_model(base)
    with pytest.raises(InputError, match=r"share the memory of .*a PEFT model was made on the base object.*in place"):
        check_distinct(base, wrapped)
    with pytest.raises(InputError, match=r"the same model object; a PEFT model was made on the base object"):
        check_distinct(base, wrapped.base_model.model)
    with pytest.raises(InputError, match=r"the same model object"):
        check_distinct(base, wrapped.merge_and_unload())


def shallow(base: PreTrainedModel, tuned: PreTrainedModel) -> PreTrainedModel:
    return copy.copy(base)


def assigned(base: PreTrainedModel, tuned: PreTrainedModel) -> PreTrainedModel:
    tuned.load_state_dict(base.state_dict(), assign=True)
    return tuned


def one_layer(base: PreTrainedModel, tuned: PreTrainedModel) -> PreTrainedModel:
    tuned.model.layers[2] = base.model.layers[2]
    return tuned


def one_embedding(base: PreTrainedModel, tuned: PreTrainedModel) -> PreTrainedModel:
    tuned.set_input_embeddings(base.get_input_embeddings())
    return tuned


def one_storage(base: PreTrainedModel, tuned: PreTrainedModel) -> PreTrainedModel:
    """Another parameter, of which some rows are the base's."""
    tuned.lm_head.weight.data = base.lm_head.weight.data[10:]
    return tuned


def one_buffer(base: PreTrainedModel, tuned: PreTrainedModel) -> PreTrainedModel:
    tuned.model.rotary_emb = base.model.rotary_emb
    return tuned


@pytest.mark.parametrize(
    ("sharing", "named"),
    [
        (shallow, "model.embed_tokens.weight"),
        (assigned, "model.embed_tokens.weight"),
        (one_layer, "model.layers.2.self_attn.q_proj.weight"),
        (one_embedding, "model.embed_tokens.weight"),
        (one_storage, "lm_head.weight"),
        (one_buffer, "model.rotary_emb.inv_freq"),
    ],
)
def test_models_that_share_memory_are_refused(tiny_pair: Any, sharing: Any, named: str) -> None:
    base, tuned = tiny_pair("llama")
    tuned = sharing(base, tuned)
    with pytest.raises(InputError, match=rf"share the memory of \d+ weights? \({re.escape(named)} among them\)"):
        check_distinct(base, tuned)


def test_weights_side_by_side_in_one_storage_are_not_shared(tiny_pair: Any) -> None:
    base, tuned = tiny_pair("llama")
    rows = len(base.lm_head.weight)
    together = torch.cat([base.lm_head.weight.data, tuned.lm_head.weight.data])
    base.lm_head.weight.data, tuned.lm_head.weight.data = together[:rows], together[rows:]
    check_distinct(base, tuned)


@pytest.mark.parametrize(
    ("base_dtype", "tuned_dtype", "told"),
    [
        ("float32", "bfloat16", r"is float32 in base and bfloat16 in tuned.*tuned\.to\(torch\.float32\)"),
        ("bfloat16", "float32", r"is bfloat16 in base and float32 in tuned.*base\.to\(torch\.float32\)"),
        ("float16", "bfloat16", "is float16 in base and bfloat16 in tuned"),
    ],
)
def test_other_dtypes_are_refused_with_both(tiny_pair: Any, base_dtype: str, tuned_dtype: str, told: str) -> None:
    base, tuned = tiny_pair("llama")
    base, tuned = base.to(getattr(torch, base_dtype)), tuned.to(getattr(torch, tuned_dtype))
    with pytest.raises(InputError, match=f"^base and tuned have different dtypes: model.embed_tokens.weight {told}"):
        check_alike(base, tuned)
    check_alike(base, copy.deepcopy(base))


def test_one_weight_of_another_dtype_is_named(tiny_pair: Any) -> None:
    base, tuned = tiny_pair("llama")
    tuned.model.layers[1].mlp.up_proj.double()
    with pytest.raises(
        InputError, match=r"dtypes: model\.layers\.1\.mlp\.up_proj\.weight is float32 in base and float64"
    ):
        check_alike(base, tuned)


def test_tables_of_positions_that_one_model_has_rounded_are_named(tiny_pair: Any) -> None:
    base, tuned = tiny_pair("llama")
    base, tuned = base.bfloat16(), tuned.bfloat16()
    check_alike(base, tuned)
    tuned.model.rotary_emb.float()
    said = r"tables of different dtypes: model\.rotary_emb\.inv_freq is bfloat16 in base and float32 in tuned.*torch\.bfloat16"
    with pytest.raises(InputError, match=said):
        check_alike(base, tuned)


def test_other_devices_are_refused_with_both(tiny_pair: Any) -> None:
    base, tuned = tiny_pair("llama")
    with pytest.raises(InputError, match=r"^base and tuned are on different devices: cpu and meta:0; move one of them"):
        check_alike(base, tuned.to("meta"))


@pytest.mark.parametrize(
    "part", ["lm_head", "model.norm", "model.embed_tokens", "model.layers.2", "model.layers.1.mlp"]
)
def test_several_dtypes_in_one_model_that_its_forward_cannot_mix_are_named(tiny: Build, part: str) -> None:
    model = tiny("llama").bfloat16()
    model.get_submodule(part).float()
    with pytest.raises(
        InputError, match=r"its own forward fails \(RuntimeError: .*its weights have several dtypes"
    ) as said:
        Adapter(model)
    assert all(name in str(said.value) for name in ("bfloat16 (", "float32 (", "model.float()"))


def test_several_dtypes_that_the_forward_casts_itself_are_fine(tiny: Build) -> None:
    model = tiny("gpt2").bfloat16()
    model.transformer.ln_f.float()
    model.lm_head = nn.Linear(16, 320, bias=False)  # untied, and float32 behind a float32 norm
    forward = model.transformer.ln_f.forward
    model.transformer.ln_f.forward = lambda states: forward(states.float())
    assert Adapter(model).n_layers == 4
