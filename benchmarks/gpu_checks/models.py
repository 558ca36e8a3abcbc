"""Random models for the checks: tiny ones of several architectures, and a large one with about 1.1 billion parameters."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpu_checks.record import NotRunError, Setup
from raysweep.data.examples import Example
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import Checkpoint, describe
from raysweep.models.loading import load_model
from raysweep.models.stream import StreamedModel
from raysweep.studies.streamed import StreamedPair
from raysweep.studies.substitution import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = 320
_SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # wide, so that a replaced layer changes a loss by far more than rounding does
}
_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}

# Name → (config class of transformers, its sizes): one model for each kind of layer that the paths treat differently.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _LLAMA),
    "gemma2": ("Gemma2Config", {**_LLAMA, **_SLIDING, "query_pre_attn_scalar": 8}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [1]},
    ),
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 4, "n_head": 4, "n_positions": 64}),
    "gemma3n": (  # later layers use the keys and values of earlier ones; several streams of states
        "Gemma3nTextConfig",
        {
            **_LLAMA,
            "sliding_window": 4,
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
}
SEVERAL_STREAMS = frozenset({"gemma3n"})  # raysweep replaces no parts of their layers and removes no components


class Digits:
    """A stand-in for a tokenizer: texts are token ids in decimal, and no token ends a text."""

    pad_token_id, eos_token_id = 0, None

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, tokens))


def random_examples(lengths: Sequence[int], vocabulary: int = VOCABULARY) -> list[Example]:
    """Random texts of these lengths. The first half of each is the prompt."""
    draw = np.random.default_rng(0)
    return [
        Example(place, draw.integers(3, vocabulary, length), length // 2, "", "")
        for place, length in enumerate(lengths)
    ]


def tiny_models(name: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """(base, tuned) of an architecture in float32 on the CPU. The tuned model is the base with noise on every weight."""
    import transformers

    config_class, sizes = ARCHITECTURES[name]
    if not hasattr(transformers, config_class):
        raise NotRunError(f"transformers {transformers.__version__} has no {config_class}")
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**_SHARED | sizes))
    return base.float().eval(), with_noise(base, 0.1)


def with_noise(model: PreTrainedModel, scale: float) -> PreTrainedModel:
    """A copy of the model with normal noise of this scale on every parameter."""
    changed = copy.deepcopy(model).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in changed.parameters():
            weight += scale * torch.randn_like(weight)
    return changed


def pair_on(device: str, models: tuple[PreTrainedModel, PreTrainedModel]) -> Pair:
    """A resident pair of copies of the models on the device."""
    base, tuned = (Adapter(copy.deepcopy(model).to(device)) for model in models)
    return Pair(base, tuned)


def save_pair(models: tuple[PreTrainedModel, PreTrainedModel], folder: Path) -> tuple[Checkpoint, Checkpoint]:
    """Write both models as checkpoints, and describe them."""
    for model, name in zip(models, ("base", "tuned"), strict=True):
        model.save_pretrained(folder / name, max_shard_size="1GB")
    return describe(str(folder / "base")), describe(str(folder / "tuned"))


def load(checkpoint: Checkpoint, dtype: str, device: str) -> Adapter:
    """A resident model, loaded as raysweep loads it. Without accelerate, which that needs, through the CPU's memory."""
    if importlib.util.find_spec("accelerate") is not None:
        return Adapter(load_model(checkpoint, dtype=dtype, device=device))
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=getattr(torch, dtype))
    return Adapter(model.eval().requires_grad_(False).to(device))


def streamed_pair(checkpoints: tuple[Checkpoint, Checkpoint], dtype: str, device: str) -> StreamedPair:
    """The pair with its layers on disk."""
    base, tuned = (StreamedModel(checkpoint, dtype=dtype, device=device) for checkpoint in checkpoints)
    return StreamedPair.of(base, tuned)


def large_models(setup: Setup) -> tuple[PreTrainedModel, PreTrainedModel]:
    """(base, tuned) in bfloat16, made on the device: a Llama of about 1.1 billion parameters; much smaller with --tiny."""
    if "models" not in setup.kept:
        from transformers import LlamaConfig, LlamaForCausalLM

        width, layers = (64, 3) if setup.tiny else (2048, 16)
        config = LlamaConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 16 if setup.tiny else width // 64,
            num_key_value_heads=2 if setup.tiny else 8,
            vocab_size=large_vocabulary(setup),
            max_position_embeddings=2048,
            tie_word_embeddings=False,
            eos_token_id=None,
        )
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(torch.bfloat16)
            with torch.device(setup.device):
                base = LlamaForCausalLM(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
        base.config.dtype = torch.bfloat16
        setup.kept["models"] = base, with_noise(base, 0.004)
    return setup.kept["models"]


def large_vocabulary(setup: Setup) -> int:
    return 512 if setup.tiny else 32_000


def large_examples(setup: Setup) -> list[Example]:
    """Texts of mixed lengths, so that batches have some padding."""
    shortest, longest, n = (16, 40, 6) if setup.tiny else (256, 512, 32)
    lengths = np.random.default_rng(1).integers(shortest, longest + 1, n)
    return random_examples([int(length) for length in lengths], large_vocabulary(setup))


def large_checkpoints(setup: Setup) -> tuple[Checkpoint, Checkpoint]:
    """The large models as checkpoints on disk, written and described once."""
    if "checkpoints" not in setup.kept:
        setup.kept["checkpoints"] = save_pair(large_models(setup), setup.folder / "large")
    return setup.kept["checkpoints"]


def batch_tokens(setup: Setup) -> int:
    """Padded tokens of one block call on the large model."""
    return 128 if setup.tiny else 8192
