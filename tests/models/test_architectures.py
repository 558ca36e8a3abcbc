"""Every tested architecture: found, replayed bit for bit, saved and loaded again; and what is refused, with its reason.

The oracle is the model's own forward. The sweep over the same table is in tests/studies/test_architecture_sweeps.py.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from architectures import DECODERS, ENCODERS, REPLAYED, VOCABULARY, WRAPPERS, build, build_pair
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from raysweep.errors import InputError
from raysweep.models.adapter import Adapter, Shared, apply_block
from raysweep.models.checkpoint import describe, predicts_tokens
from raysweep.models.loading import load_model
from raysweep.models.pair import check_pair
from raysweep.models.surgery import substitute
from raysweep.studies.critical import Critical

PREDICTING = DECODERS | WRAPPERS


def tokens(rows: int = 3, length: int = 17) -> torch.Tensor:
    return torch.randint(3, 310, (rows, length), generator=torch.Generator().manual_seed(0))


def own_logits(model: PreTrainedModel, batch: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=batch, use_cache=False).logits


def replay(adapter: Adapter, blocks: Any, batch: torch.Tensor) -> torch.Tensor:
    recording = adapter.record(batch)
    states, shared = recording.states, Shared()
    with torch.no_grad():
        for block, call in zip(blocks, recording.calls, strict=True):
            states = apply_block(block, states, call, shared)
    return adapter.logits(states.flatten(-3, -2)).unflatten(0, batch.shape)


@pytest.mark.parametrize("kind", PREDICTING)
def test_replay_and_a_substitution_of_two_layers_are_the_models_own_forward_bit_for_bit(kind: str) -> None:
    base, tuned = build_pair(PREDICTING[kind])
    ours, theirs = Adapter(tuned), Adapter(base)
    assert ours.block_path == PREDICTING[kind].block_path
    batch = tokens()
    untouched = own_logits(tuned, batch)
    assert ours.calls_head_directly == (kind not in REPLAYED)
    assert torch.equal(replay(ours, ours.blocks, batch), untouched)
    for layers in ((0, 1), (ours.n_layers - 2, ours.n_layers - 1)):
        mixed = [(theirs if i in layers else ours).blocks[i] for i in range(ours.n_layers)]
        with substitute(ours.blocks, theirs.blocks, layers):
            expected = own_logits(tuned, batch)
        assert (expected - untouched).abs().max() > 0.01, "or the substitution would prove nothing"
        assert torch.equal(replay(ours, mixed, batch), expected)


@pytest.mark.parametrize("kind", PREDICTING)
def test_bfloat16_replays_too(kind: str) -> None:
    model = build(PREDICTING[kind]).to(torch.bfloat16)
    adapter = Adapter(model)
    assert adapter.calls_head_directly == (kind not in REPLAYED)
    assert torch.equal(replay(adapter, adapter.blocks, tokens()), own_logits(model, tokens()))


@pytest.mark.parametrize("kind", PREDICTING)
def test_a_saved_pair_is_described_compared_and_loaded_whole(kind: str, tmp_path: Path) -> None:
    for name, model in zip(("base", "tuned"), build_pair(PREDICTING[kind]), strict=True):
        model.save_pretrained(tmp_path / name)
    base, tuned = describe(str(tmp_path / "base")), describe(str(tmp_path / "tuned"))
    check_pair(base, tuned)
    assert predicts_tokens(base)
    loaded = load_model(tuned)
    assert base.n_layers == Adapter(loaded).n_layers
    written = model.state_dict()
    assert set(loaded.state_dict()) == set(written)
    assert all(torch.equal(weight, written[name]) for name, weight in loaded.state_dict().items())
    # Not bit for bit: a product's rounding depends on where in memory its weights begin.
    torch.testing.assert_close(own_logits(loaded, tokens()), own_logits(model, tokens()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", PREDICTING)
def test_the_lists_for_training_name_the_layers_of_any_architecture(kind: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = build(PREDICTING[kind])
    adapter = Adapter(model)
    layers = [1, adapter.n_layers - 1]
    critical = Critical(
        layers,
        np.zeros(adapter.n_layers),
        np.zeros(adapter.n_layers),
        adapter.block_path,
        adapter.layers_pattern,
        adapter.names_elsewhere(layers),
    )
    assert critical.freeze_list()[:2] == [f"{PREDICTING[kind].block_path}.{layer}." for layer in layers]
    prefixes = tuple(critical.freeze_list())
    named = {id(p) for name, p in model.named_parameters() if name.startswith(prefixes)}
    assert named == {id(p) for layer in layers for p in adapter.blocks[layer].parameters()}
    # PEFT puts adapters on fused experts in every layer, whatever layers it is told: so the first plain projection of each
    first = {
        next((n for n, m in adapter.blocks[layer].named_modules() if isinstance(m, torch.nn.Linear)), "attn.c_attn")
        for layer in layers
    }
    targets = sorted({name.rpartition(".")[2] for name in first})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        lora = get_peft_model(model, LoraConfig(r=2, target_modules=targets, **critical.peft_config()))
    trained = [name for name, p in lora.named_parameters() if p.requires_grad]
    found = {re.search(rf"{re.escape(adapter.block_path)}\.(\d+)\.", name) for name in trained}
    assert None not in found, "no tower beside the decoder is trained"
    assert {int(match.group(1)) for match in found if match} == set(layers)


def test_experts_stored_in_four_bits_are_measured_in_the_dtype_asked_for(tmp_path: Path) -> None:
    build(DECODERS["gpt_oss"], hidden_size=32, intermediate_size=32).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, entering, leaving = tensors.pop(name).shape
        shape, generator = (experts, leaving, entering // 32), torch.Generator().manual_seed(0)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        tensors[f"{name}_scales"] = torch.full(shape, 124, dtype=torch.uint8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": plain}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load_model(describe(str(tmp_path)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    adapter = Adapter(model)
    assert torch.equal(replay(adapter, adapter.blocks, tokens()), own_logits(model, tokens()))


def test_weights_that_layers_share_are_listed_under_the_name_they_have() -> None:
    adapter = Adapter(build(DECODERS["zamba2"]))
    assert adapter.names_elsewhere([1]) == ()
    elsewhere = adapter.names_elsewhere([5])
    assert "model.layers.1.shared_transformer.self_attn.q_proj.weight" in elsewhere
    assert all(name.startswith("model.layers.1.shared_transformer.") for name in elsewhere)


def test_a_pattern_is_told_apart_from_towers_beside_the_decoder() -> None:
    assert Adapter(build(DECODERS["gpt2"])).layers_pattern == "h"
    model = build(WRAPPERS["gemma3_multimodal"])
    paths = [path for path, m in model.named_modules() if isinstance(m, torch.nn.ModuleList)]
    assert sorted(paths) == ["model.language_model.layers", "model.vision_tower.encoder.layers"]
    assert Adapter(model).layers_pattern == "language_model.layers"


# Refusals


class _LeavesInModule(hf.LlamaForCausalLM):
    """Blocks that hand something on through a module, where no recording sees it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        left: dict[str, torch.Tensor] = {}

        def read_and_leave(block: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
            mixed = out + left.get("states", 0)
            left["states"] = out
            return mixed

        self.model.layers[0].register_forward_hook(lambda block, args, out: left.__setitem__("states", out))
        self.model.layers[1].register_forward_hook(read_and_leave)


class _Overwrites(hf.LlamaForCausalLM):
    """A block that writes into the states it is given, which another window may still need."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.layers[1].register_forward_pre_hook(lambda block, args: (args[0].mul_(2), *args[1:]))


def test_blocks_that_reach_each_other_unseen_are_refused() -> None:
    config = build(DECODERS["llama"]).config
    with pytest.raises(
        InputError, match=r"^_LeavesInModule cannot be swept .*: replaying its blocks produces logits that"
    ):
        Adapter(_LeavesInModule(config))
    with pytest.raises(
        InputError, match=r"^_Overwrites cannot be .*: its LlamaDecoderLayer overwrites its input states"
    ):
        Adapter(_Overwrites(config))


def test_a_causal_model_that_sees_what_follows_is_refused() -> None:
    model = build(DECODERS["llama"])
    for block in model.model.layers:
        block.register_forward_hook(lambda block, args, out: out + out.mean(1, keepdim=True))
    with pytest.raises(InputError, match=r"tokens behind one move logits by \S+, so padding would change every res"):
        Adapter(model)


REFUSED = {
    "t5": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
        ),
        r"T5ForConditionalGeneration.* is an encoder-decoder: its decoder also reads the states of a separate encoder",
    ),
    "vit": (
        lambda: hf.ViTModel(
            hf.ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4)
        ),
        r"ViTModel.* does not take text; give a causal language model or a text encoder",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_stack_of_text_layers_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    model = make()
    with pytest.raises(InputError, match=message):
        Adapter(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"^checkpoint '{tmp_path}' \\({message}".replace(".* ", r"\) ")):
        predicts_tokens(describe(str(tmp_path)))


def test_a_multimodal_checkpoint_without_a_causal_class_is_refused(tmp_path: Path) -> None:
    images = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "projection_dim": 16}
    images |= {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text = {"model_type": "llama", "vocab_size": VOCABULARY, **DECODERS["llama"].sizes}
    config = hf.LlavaConfig(text_config=text, vision_config=images, image_token_index=300)
    hf.LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(
        InputError, match=r"\(LlavaForConditionalGeneration\) takes more than text, and transformers has"
    ):
        load_model(describe(str(tmp_path)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: hf.RwkvForCausalLM(
                hf.RwkvConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=4, rescale_every=2)
            ),
            r"^RwkvForCausalLM cannot be swept layer by layer: replaying its blocks produces logits that differ by \S+ "
            r"from",
        ),
        (
            lambda: hf.T5EncoderModel(
                hf.T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
            ),
            r"^T5EncoderModel cannot be swept layer by layer: replaying its blocks produces states that differ by \S+ "
            r"from",
        ),
        (
            lambda: hf.XLNetLMHeadModel(
                hf.XLNetConfig(vocab_size=VOCABULARY, d_model=16, n_layer=2, n_head=4, d_inner=32)
            ),
            r"^XLNetLMHeadModel cannot be swept layer by layer: replaying its blocks fails \(RuntimeError: shape ",
        ),
        (
            lambda: hf.AlbertModel(hf.AlbertConfig(vocab_size=VOCABULARY, hidden_size=16, num_attention_heads=2)),
            r"^AlbertModel has no list of 12 blocks that raysweep can find",
        ),
        (
            lambda: hf.ConvBertModel(
                hf.ConvBertConfig(vocab_size=VOCABULARY, hidden_size=16, embedding_size=16, num_attention_heads=4)
            ),
            r"^ConvBertModel cannot be swept .*: tokens that its attention mask hides move states by \S+, so pad",
        ),
    ],
)
def test_architectures_that_the_probe_refuses(make: Any, message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(InputError, match=message):
        Adapter(make().eval())


# Models with states only


@pytest.mark.parametrize(("kind", "cls"), [(kind, cls) for kind, tiny in ENCODERS.items() for cls in tiny.classes])
def test_a_checkpoint_of_an_encoder_gives_its_states_whatever_its_head(kind: str, cls: str, tmp_path: Path) -> None:
    model = build(ENCODERS[kind], cls=cls)
    assert Adapter(model).block_path.endswith(ENCODERS[kind].block_path)
    model.save_pretrained(tmp_path)
    checkpoint = describe(str(tmp_path))
    assert not predicts_tokens(checkpoint)
    check_pair(checkpoint, checkpoint)
    loaded = load_model(checkpoint)
    adapter = Adapter(loaded)
    assert not adapter.predicts
    assert (adapter.block_path, adapter.n_layers) == (ENCODERS[kind].block_path, checkpoint.n_layers)
    assert adapter.block_path.endswith(adapter.layers_pattern)
    with torch.no_grad():
        expected = model.base_model(input_ids=tokens(), attention_mask=torch.ones(3, 17)).last_hidden_state
        found = loaded(input_ids=tokens(), attention_mask=torch.ones(3, 17)).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_bert_that_is_made_a_decoder_predicts(tmp_path: Path) -> None:
    model = build(ENCODERS["bert"], cls="BertLMHeadModel", is_decoder=True)
    assert Adapter(model).predicts
    model.save_pretrained(tmp_path)
    assert predicts_tokens(describe(str(tmp_path)))
    assert type(load_model(describe(str(tmp_path)))) is hf.BertLMHeadModel


def test_logits_of_a_model_that_predicts_nothing_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        Adapter(build(ENCODERS["bert"])).logits(torch.zeros(1, 16))
    assert str(caught.value) == (
        "BertModel does not predict the next token (it is an encoder, or lacks its head), and substitution measures "
        "the loss of a response's tokens; measure only its similarity"
    )
