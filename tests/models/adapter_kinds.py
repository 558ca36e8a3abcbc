"""Every type of PEFT adapter, and settings of LoRA, as configs for a tiny Llama of two layers and width 16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from peft_warnings import pefts_warnings
from transformers import AutoModelForCausalLM, PreTrainedModel

LINEAR = ["q_proj", "v_proj", "down_proj"]


def _of(kind: str, **settings: Any) -> Callable[[], Any]:
    asked = {"task_type": "CAUSAL_LM", "target_modules": LINEAR} | settings

    def make() -> Any:
        with pefts_warnings():
            return peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind](**{k: v for k, v in asked.items() if v != "none"})

    return make


def _lora(**settings: Any) -> Callable[[], Any]:
    return _of("LORA", **({"r": 4, "lora_alpha": 8} | settings))


def _virtual(kind: str) -> Callable[[], Any]:
    return _of(kind, target_modules="none", num_virtual_tokens=3)


# What the installed PEFT can merge, so that the result must be its own forward.
MERGED: dict[str, Callable[[], Any]] = {
    "lora": _lora(),
    "rslora": _lora(
        use_rslora=True,
        rank_pattern={"layers.1.self_attn.q_proj": 2},
        alpha_pattern={"layers.0.mlp.down_proj": 32},
    ),
    "dora": _lora(use_dora=True),
    "pissa": _lora(init_lora_weights="pissa"),
    "olora": _lora(init_lora_weights="olora"),
    "gaussian": _lora(init_lora_weights="gaussian"),
    "random": _lora(init_lora_weights=False),
    "eva": _lora(init_lora_weights="eva"),
    "orthogonal": _lora(init_lora_weights="orthogonal"),
    "mica": _lora(init_lora_weights="mica"),
    "lora_ga": _lora(init_lora_weights="lora_ga"),
    "all_linear": _lora(target_modules="all-linear"),
    "pattern": _lora(target_modules=r".*\.1\.self_attn\.(q|k)_proj"),
    "excluding": _lora(exclude_modules=["layers.0.self_attn.q_proj"]),
    "one_layer": _lora(layers_to_transform=[1]),
    "parameters": _lora(target_modules=[], target_parameters=["q_proj.weight"]),
    "replicated_once": _lora(layer_replication=[[0, 2]]),
    "biases": _lora(bias="all"),
    "tokens": _lora(trainable_token_indices=[5, 6]),
    "tokens_of_head": _lora(trainable_token_indices={"lm_head": [5, 6]}),
    "save_head": _lora(modules_to_save=["lm_head"]),
    "save_embedding": _lora(modules_to_save=["embed_tokens"]),
    "save_both": _lora(modules_to_save=["embed_tokens", "lm_head"]),
    "save_tied": _lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "save_norms": _lora(modules_to_save=["norm", "input_layernorm"]),
    "embedding": _lora(target_modules=[*LINEAR, "embed_tokens"]),
    "head": _lora(target_modules=[*LINEAR, "lm_head"]),
    "embedding_and_head": _lora(target_modules=["q_proj", "embed_tokens", "lm_head"]),
    "embedding_tied": _lora(target_modules=[*LINEAR, "embed_tokens"], ensure_weight_tying=True),
    "dora_of_both": _lora(target_modules=["embed_tokens", "lm_head"], use_dora=True),
    "kasa": _lora(kasa_config={}),
    "monteclora": _lora(monteclora_config={}),
    "ADALORA": _of("ADALORA", total_step=10, init_r=4, target_r=2),
    "adalora_head": _of("ADALORA", total_step=10, init_r=4, target_r=2, target_modules=["lm_head"]),
    "BOFT": _of("BOFT", boft_block_size=4),
    "IA3": _of("IA3", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LOHA": _of("LOHA", r=4),
    "LOKR": _of("LOKR", r=4),
    "OFT": _of("OFT", r=0, oft_block_size=4),
    "coft": _of("OFT", r=0, oft_block_size=4, coft=True, eps=0.5),
    "LN_TUNING": _of("LN_TUNING", target_modules=["input_layernorm", "norm"]),
    "VERA": _of("VERA", r=4),
    "vera_of_seed": _of("VERA", r=4, save_projection=False, projection_prng_key=3),
    "vera_head": _of("VERA", r=4, target_modules=["lm_head"]),
    "FROD": _of("FROD"),
    "PVERA": _of("PVERA", r=4),
    "FOURIERFT": _of("FOURIERFT", n_frequency=16),
    "GLORA": _of("GLORA", r=4),
    "HRA": _of("HRA", r=4),
    "VBLORA": _of("VBLORA", r=4, num_vectors=16, vector_length=8),
    "vblora_top_k": _of("VBLORA", r=4, num_vectors=16, vector_length=8, save_only_topk_weights=True),
    "UNILORA": _of("UNILORA", r=4, theta_d_length=32),
    "MISS": _of("MISS", r=4),
    "miss_bat": _of("MISS", r=4, init_weights="bat"),
    "RANDLORA": _of("RANDLORA", r=4, randlora_alpha=8),
    "ROAD": _of("ROAD", group_size=4),
    "TRAINABLE_TOKENS": _of("TRAINABLE_TOKENS", token_indices=[5, 6], target_modules=["embed_tokens"]),
    "trainable_tokens_head": _of("TRAINABLE_TOKENS", token_indices=[5, 6], target_modules=["lm_head"]),
    "HIRA": _of("HIRA", r=4),
    "hira_of_both": _of("HIRA", r=4, target_modules=["embed_tokens", "lm_head"]),
    "SHIRA": _of("SHIRA", r=2),
    "C3A": _of("C3A", block_size=4),
    "WAVEFT": _of("WAVEFT", n_frequency=16),
    "OSF": _of("OSF"),
    "DELORA": _of("DELORA", r=4),
    "GRALORA": _of("GRALORA", r=4, gralora_k=2),
    "TINYLORA": _of("TINYLORA"),
    "PSOFT": _of("PSOFT", r=4),
    "PEANUT": _of("PEANUT", r=4),
    "SUPERTUNING": _of("SUPERTUNING"),
    "DEFT": _of("DEFT", r=4),
}
_NO_WEIGHTS = "which changes no layer's weights and cannot be merged"
# What can be saved and must not be measured, and words of the reason.
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "pissa_by_iterations": (
        _lora(init_lora_weights="pissa_niter_4"),
        "pissa_niter_4.*random values that are not saved",
    ),
    "lora_bias": (_lora(lora_bias=True), "lora_bias=True.* cannot be merged into its base: .*no bias"),
    "alora": (_lora(alora_invocation_tokens=[4]), r"alora_invocation_tokens=\[4\].* cannot be merged"),
    "replicated": (_lora(layer_replication=[[0, 2], [1, 2]]), "layer_replication.* of 2 layers.*no counterpart"),
    "replicated_evenly": (_lora(layer_replication=[[0, 1], [0, 1]]), "layer_replication.* of 2 layers.*no counterpart"),
    "pvera_sampling": (_of("PVERA", r=4, sample_at_inference=True), "draws random values each time it runs"),
    "ADAPTION_PROMPT": (
        _of("ADAPTION_PROMPT", target_modules="none", adapter_len=4, adapter_layers=2),
        f"ADAPTION_PROMPT, {_NO_WEIGHTS}",
    ),
    "BEFT": (_of("BEFT"), "BEFT cannot be merged into its base: Base layer has no bias"),
    "LILY": (_of("LILY", r=4), "LILY cannot be merged"),
    "POLY": (_of("POLY", r=4), "POLY cannot be merged into its base: PEFT has no way to merge this type"),
    "SHADOW": (_of("SHADOW", target_modules="none"), "SHADOW cannot be merged.*input-dependent"),
    "PROMPT_TUNING": (_virtual("PROMPT_TUNING"), f"PROMPT_TUNING, {_NO_WEIGHTS}"),
    "MULTITASK_PROMPT_TUNING": (_virtual("MULTITASK_PROMPT_TUNING"), f"MULTITASK_PROMPT_TUNING, {_NO_WEIGHTS}"),
    "P_TUNING": (_virtual("P_TUNING"), f"P_TUNING, {_NO_WEIGHTS}"),
    "PREFIX_TUNING": (_virtual("PREFIX_TUNING"), f"PREFIX_TUNING, {_NO_WEIGHTS}"),
    "CARTRIDGE": (_virtual("CARTRIDGE"), f"CARTRIDGE, {_NO_WEIGHTS}"),
    "CPT": (
        _of("CPT", target_modules="none", cpt_token_ids=[1, 2], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 1]),
        f"CPT, {_NO_WEIGHTS}",
    ),
}
# What PEFT itself does not load here, as settings of an adapter_config.json, and words of the reason.
UNLOADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "XLORA": ({"peft_type": "XLORA", "hidden_size": 16, "adapters": {}}, f"XLORA, {_NO_WEIGHTS}"),
    "ADAMSS": ({"peft_type": "ADAMSS", "r": 4, "target_modules": LINEAR}, "PEFT .* cannot read .*scikit-learn"),
    "corda": ({"init_lora_weights": "corda"}, "does not fit its base .*eigens"),
    "arrow": ({"arrow_config": {}}, "arrow_config|does not fit its base"),
    "newer": ({"peft_type": "LORA_OF_NEXT_YEAR"}, "peft_type 'LORA_OF_NEXT_YEAR', which PEFT .* does not know"),
}


def trained(base: Path, config: Any, folder: Path, name: str = "default") -> Path:
    """Write an adapter whose trained values were moved at random."""
    model = plain(base)
    torch.manual_seed(1)
    with pefts_warnings(), torch.no_grad():
        tuned: Any = peft.get_peft_model(model, config, adapter_name=name)
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
        tuned.save_pretrained(folder)
    return folder


def plain(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def own_logits(base: Path, adapter: Path, tokens: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """What PEFT computes with the adapter on the base, unmerged; the seed is that of whatever it draws on the way."""
    model = plain(base)
    torch.manual_seed(seed)
    with pefts_warnings():
        return logits(peft.PeftModel.from_pretrained(model, adapter).eval(), tokens)


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    return found.double()
