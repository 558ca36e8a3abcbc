"""Tiny random models of many architectures: one table of configs.

Each is as small as its architecture allows while every kind of layer it has occurs. Where the kinds alternate, the config
sets the pattern, so that windows of one layer and of two cover each kind and each change between kinds. Sliding windows
are shorter than the examples, else they would be full attention. Weights are drawn wide (see `build`), so that putting a
layer back moves a loss by far more than any tolerance; a little less wide where recurrent layers amplify rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from raysweep.data.examples import Example

VOCABULARY = 320
CONTEXT = 64
_SHARED: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GPT = {"n_embd": 16, "n_layer": 4, "n_head": 4, "n_positions": CONTEXT}
_ROTARY = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "intermediate_size": 40,
}
_GROUPED = {**_ROTARY, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False}
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}


@dataclass(frozen=True)
class Tiny:
    """One architecture: its config class, where its blocks are, its sizes, and the classes it may be saved from."""

    config: str
    block_path: str
    sizes: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ("AutoModelForCausalLM",)


DECODERS: dict[str, Tiny] = {
    "llama": Tiny("LlamaConfig", "model.layers", _GROUPED),
    "qwen2": Tiny("Qwen2Config", "model.layers", {**_GROUPED, **_SLIDING, "use_sliding_window": True}),
    "qwen3": Tiny("Qwen3Config", "model.layers", _GROUPED),
    "qwen3_moe": Tiny("Qwen3MoeConfig", "model.layers", {**_GROUPED, **_EXPERTS, "mlp_only_layers": [1]}),
    "qwen3_next": Tiny(
        "Qwen3NextConfig",
        "model.layers",
        {
            **_GROUPED,
            **_EXPERTS,
            "initializer_range": 0.2,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "gemma2": Tiny("Gemma2Config", "model.layers", {**_GROUPED, **_SLIDING, "query_pre_attn_scalar": 8}),
    "gemma3": Tiny("Gemma3TextConfig", "model.layers", {**_GROUPED, **_SLIDING, "query_pre_attn_scalar": 8}),
    "gemma3n": Tiny(
        "Gemma3nTextConfig",
        "model.layers",
        {
            **_GROUPED,
            **_SLIDING,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "num_kv_shared_layers": 3,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.5] + [0.0] * 5,
            "altup_num_inputs": 2,
        },
    ),
    "gemma4": Tiny(
        "Gemma4TextConfig",
        "model.layers",
        {
            **_GROUPED,
            **_SLIDING,
            "global_head_dim": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "num_kv_shared_layers": 3,
        },
    ),
    "phi": Tiny("PhiConfig", "model.layers", _ROTARY),
    "phi3": Tiny("Phi3Config", "model.layers", {**_GROUPED, "head_dim": 4, "sliding_window": 4}),
    "olmo2": Tiny("Olmo2Config", "model.layers", {**_GROUPED, "head_dim": 4}),
    "cohere2": Tiny("Cohere2Config", "model.layers", {**_GROUPED, **_SLIDING}),
    "mixtral": Tiny("MixtralConfig", "model.layers", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": Tiny(
        "GptOssConfig", "model.layers", {**_GROUPED, **_SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "deepseek_v3": Tiny(
        "DeepseekV3Config",
        "model.layers",
        {
            **_GROUPED,
            "num_key_value_heads": 4,
            "head_dim": 4,
            "first_k_dense_replace": 2,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 4,
            "v_head_dim": 4,
        },
    ),
    "openai_gpt": Tiny("OpenAIGPTConfig", "transformer.h", _GPT),
    "gpt2": Tiny("GPT2Config", "transformer.h", _GPT),
    "gpt_neox": Tiny("GPTNeoXConfig", "gpt_neox.layers", _ROTARY),
    "gptj": Tiny("GPTJConfig", "transformer.h", {**_GPT, "rotary_dim": 4}),
    "opt": Tiny("OPTConfig", "model.decoder.layers", {**_ROTARY, "ffn_dim": 40, "word_embed_proj_dim": 16}),
    "falcon": Tiny("FalconConfig", "transformer.h", {k: v for k, v in _ROTARY.items() if k != "intermediate_size"}),
    "falcon_alibi": Tiny(
        "FalconConfig",
        "transformer.h",
        {**{k: v for k, v in _ROTARY.items() if k != "intermediate_size"}, "alibi": True},
    ),
    "bloom": Tiny("BloomConfig", "transformer.h", {"hidden_size": 16, "n_layer": 4, "n_head": 4}),
    "mpt": Tiny(
        "MptConfig",
        "transformer.blocks",
        {"d_model": 16, "n_layers": 4, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": CONTEXT},
    ),
    "mamba": Tiny(
        "MambaConfig",
        "backbone.layers",
        {"hidden_size": 16, "num_hidden_layers": 4, "state_size": 8, "time_step_rank": 4},
    ),
    "zamba2": Tiny(
        "Zamba2Config",
        "model.layers",
        {
            **_ROTARY,
            "initializer_range": 0.2,
            "num_key_value_heads": 4,
            "num_hidden_layers": 6,
            "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid", "mamba", "hybrid"],
            "hybrid_layer_ids": [1, 3, 5],
            "num_mem_blocks": 2,
            "mamba_d_state": 8,
            "mamba_headdim": 8,
            "n_mamba_heads": 4,
            "mamba_expand": 2,
            "mamba_ngroups": 1,
            "adapter_rank": 4,
            "chunk_size": 8,
        },
    ),
    "bamba": Tiny("BambaConfig", "model.layers", {**_GROUPED, **_MAMBA2, "attn_layer_indices": [1, 3], "head_dim": 4}),
    "jamba": Tiny(
        "JambaConfig",
        "model.layers",
        {
            **{k: v for k, v in _GROUPED.items() if k != "head_dim"},
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 0,
            "num_experts": 4,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "nemotron_h": Tiny(
        "NemotronHConfig",
        "model.layers",
        {
            **_GROUPED,
            "num_hidden_layers": 5,
            "layer_types": ["linear_attention", "full_attention", "mlp", "moe", "linear_attention"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
            "use_mamba_kernels": False,
        },
    ),
}

_IMAGES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
WRAPPERS: dict[str, Tiny] = {  # a language model beside towers for other input; its text part is measured
    "gemma3_multimodal": Tiny(
        "Gemma3Config",
        "model.language_model.layers",
        {
            "text_config": {**_SHARED, "initializer_range": 0.3, **DECODERS["gemma3"].sizes},
            "vision_config": {**_IMAGES, "image_size": 28, "patch_size": 14},
            "mm_tokens_per_image": 4,
            "boi_token_index": 319,
            "eoi_token_index": 317,
            "image_token_index": 318,
        },
    ),
    "gemma4_multimodal": Tiny(
        "Gemma4Config",
        "model.language_model.layers",
        {
            "text_config": {**_SHARED, "initializer_range": 0.3, **DECODERS["gemma4"].sizes},
            "vision_config": None,
            "audio_config": None,
            "image_token_id": 319,
            "video_token_id": 317,
            "audio_token_id": 318,
        },
    ),
}

REPLAYED = {"gemma3n"}  # merges its streams behind the last block, so a head call runs the whole forward with stubs

ENCODERS: dict[str, Tiny] = {
    "bert": Tiny(
        "BertConfig", "encoder.layer", _ROTARY, ("BertModel", "BertForMaskedLM", "BertForSequenceClassification")
    ),
    "roberta": Tiny(
        "RobertaConfig", "encoder.layer", _ROTARY, ("RobertaModel", "RobertaForMaskedLM", "RobertaForCausalLM")
    ),
    "distilbert": Tiny(
        "DistilBertConfig",
        "transformer.layer",
        {"dim": 16, "n_layers": 4, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": CONTEXT},
        ("DistilBertModel", "DistilBertForMaskedLM"),
    ),
    "electra": Tiny(
        "ElectraConfig", "encoder.layer", {**_ROTARY, "embedding_size": 12}, ("ElectraModel", "ElectraForPreTraining")
    ),
    "modernbert": Tiny(
        "ModernBertConfig",
        "layers",
        {
            **_ROTARY,
            "local_attention": 8,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
        ("ModernBertModel", "ModernBertForMaskedLM"),
    ),
    "mpnet": Tiny("MPNetConfig", "encoder.layer", _ROTARY, ("MPNetModel", "MPNetForMaskedLM")),
    "headless_llama": Tiny("LlamaConfig", "layers", _GROUPED, ("LlamaModel", "LlamaForSequenceClassification")),
}


def build(tiny: Tiny, seed: int = 0, cls: str | None = None, **changes: Any) -> PreTrainedModel:
    """A random model of the architecture, in evaluation mode and float32, its matrices drawn with a spread of 0.3."""
    import torch
    import transformers as hf

    torch.manual_seed(seed)
    shared = {} if "text_config" in tiny.sizes else _SHARED | {"initializer_range": 0.3}
    config = getattr(hf, tiny.config)(**(shared | tiny.sizes | changes))
    made = getattr(hf, cls or tiny.classes[0])
    model = made.from_config(config) if hasattr(made, "from_config") else made(config)
    return model.float().eval()


def build_pair(tiny: Tiny, seed: int = 0) -> tuple[PreTrainedModel, PreTrainedModel]:
    """(base, tuned): tuned is the base with noise on every weight that is stored, in parameters and in buffers."""
    import torch

    base = build(tiny, seed)
    tuned = copy.deepcopy(base)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        seen = set()
        for weight in tuned.state_dict().values():
            if weight.data_ptr() not in seen and weight.is_floating_point():  # a shared one moves once
                weight += 0.1 * torch.randn_like(weight)
            seen.add(weight.data_ptr())
    return base, tuned


def put_back(
    base: PreTrainedModel, tuned: PreTrainedModel, window: tuple[int, int], block_path: str
) -> PreTrainedModel:
    """A copy of the tuned model whose stored weights of the window's layers are the base model's.

    Layers that share weights (Zamba 2) are given their own first: a window is its layers and no others.
    """
    import torch

    model, source = copy.deepcopy(tuned), base.state_dict()
    blocks = model.get_submodule(block_path)
    for layer in range(len(blocks)):
        blocks[layer] = copy.deepcopy(blocks[layer])
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if any(name.startswith(f"{block_path}.{layer}.") for layer in range(*window)):
                weight.copy_(source[name])
    return model


def plain_loss(model: PreTrainedModel, example: Example) -> float:
    """Mean negative log likelihood over the response tokens of one example alone."""
    import torch

    tokens = torch.from_numpy(example.tokens)[None]
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0]
    log_p = logits.double().log_softmax(-1).numpy()
    return -float(np.mean([log_p[t - 1, example.tokens[t]] for t in range(example.n_prompt, len(example.tokens))]))


def plain_losses(
    base: PreTrainedModel,
    tuned: PreTrainedModel,
    examples: Sequence[Example],
    windows: Sequence[tuple[int, int]],
    block_path: str,
) -> np.ndarray:
    """[W, N]"""
    models = (put_back(base, tuned, window, block_path) for window in windows)
    return np.array([[plain_loss(model, example) for example in examples] for model in models])


def wordpiece(texts: Sequence[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerBase:
    """A small tokenizer as BERT's, trained on the texts: [CLS] before and [SEP] behind, no chat template."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special))
    made.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    names = {f"{name[1:-1].lower()}_token": name for name in special}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)
