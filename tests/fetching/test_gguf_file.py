"""A GGUF file as a checkpoint: its values decoded by hand, and as transformers loads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from small_model import HEADS, INNER, KV_HEADS, LAYERS, TEMPLATE, TOKENS, WIDTH, write_gguf

from raysweep.errors import InputError
from raysweep.fetching import gguf_file
from raysweep.fetching.gguf_file import GgufFile, check_gguf


@pytest.fixture(scope="module")
def file(gguf: Path) -> GgufFile:
    return GgufFile(gguf)


@pytest.fixture(scope="module")
def weights(file: GgufFile, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    path = tmp_path_factory.mktemp("converted") / "model.safetensors"
    file.write_weights(path)
    return load_file(path)


def decoded_q4_1(raw: np.ndarray) -> np.ndarray:
    """Rows of Q4_1 blocks, value by value: a float16 scale, a float16 offset, 16 bytes with the first half of 32 values in their low bits."""
    rows = []
    for row in raw.reshape(len(raw), -1, 20):
        values = []
        for block in row:
            scale, offset = block[:4].tobytes()[:2], block[:4].tobytes()[2:]
            scale, offset = (np.frombuffer(two, dtype="<f2")[0].astype(np.float32) for two in (scale, offset))
            low, high = [int(byte) & 15 for byte in block[4:]], [int(byte) >> 4 for byte in block[4:]]
            values += [np.float32(scale * np.float32(number)) + offset for number in (*low, *high)]
        rows.append(values)
    return np.array(rows, dtype=np.float32)


def test_q4_1_values_are_those_decoded_by_hand(gguf: Path, weights: dict[str, np.ndarray]) -> None:
    from gguf import GGUFReader

    stored = {tensor.name: tensor.data for tensor in GGUFReader(gguf).tensors}
    by_hand = decoded_q4_1(stored["blk.1.ffn_down.weight"])
    np.testing.assert_array_equal(weights["model.layers.1.mlp.down_proj.weight"], by_hand)


def test_values_are_near_those_that_were_quantised(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    original = write_gguf(tmp_path / "again.gguf")["blk.0.ffn_up.weight"]
    step = (original.max() - original.min()) / 15
    assert np.abs(weights["model.layers.0.mlp.up_proj.weight"] - original).max() <= step


def test_weights_and_config_are_those_that_transformers_loads(
    gguf: Path, file: GgufFile, weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    state = theirs.state_dict()
    assert weights.keys() == state.keys() - {"lm_head.weight"}, "the head is tied to the embedding"
    for name, values in weights.items():
        assert values.dtype == np.float32
        assert torch.equal(torch.from_numpy(values), state[name]), name
    (tmp_path / "config.json").write_text(json.dumps(file.config()))
    ours = AutoConfig.from_pretrained(tmp_path)
    assert (ours.rms_norm_eps, ours.rope_parameters["rope_theta"], ours.tie_word_embeddings) == (1e-5, 100000.0, True)
    named = [
        *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers"),
        *("vocab_size", "max_position_embeddings", "hidden_act", "rope_parameters", "head_dim", "attention_bias"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "mlp_bias", "dtype"),
    ]
    for name in named:
        assert getattr(ours, name) == getattr(theirs.config, name), name
    assert (ours.hidden_size, ours.intermediate_size, ours.num_hidden_layers) == (WIDTH, INNER, LAYERS)
    assert (ours.num_attention_heads, ours.num_key_value_heads) == (HEADS, KV_HEADS)


def test_the_tokenizer_keeps_digits_apart_and_knows_its_special_tokens(file: GgufFile) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(file.tokenizer()))
    assert tokenizer.encode("hello  12").tokens == ["hell", "o", "ĠĠ", "1", "2"]
    assert tokenizer.encode("<|im_start|>he<|im_end|>").ids == [1, TOKENS.index("he"), 2]
    settings = file.tokenizer_config()
    assert settings["chat_template"] == TEMPLATE
    roles = ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length")
    assert [settings[name] for name in roles] == ["<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>", 128]


def test_the_types_of_tensors_are_counted(file: GgufFile) -> None:
    assert file.tensor_types() == {"Q4_1": 7 * LAYERS, "F32": 2 * LAYERS + 1, "Q8_0": 1}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "qwen2"}, r"general\.architecture 'qwen2', but only 'llama' can be converted"),
        ({"tokenizer": "llama"}, r"tokenizer\.ggml\.model 'llama', but only 'gpt2' can"),
        ({"pre": "llama-bpe"}, r"tokenizer\.ggml\.pre 'llama-bpe', but only 'smollm' can"),
    ],
)
def test_another_kind_of_model_is_refused(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    write_gguf(tmp_path / "other.gguf", **changed)
    with pytest.raises(InputError, match=message):
        GgufFile(tmp_path / "other.gguf")


@pytest.mark.parametrize("found", ["0.9.1", "0.18.0rc1"])
def test_an_old_gguf_package_is_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "version", lambda name: found)
    with pytest.raises(
        InputError, match=rf"^no hub, and .* the package gguf, of which {found} is too old; run: pip install"
    ):
        check_gguf("no hub")


@pytest.mark.parametrize("found", ["0.19.0", "0.20rc1", "1.0"])
def test_a_newer_gguf_package_will_do(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_file, "version", lambda name: found)
    check_gguf("no hub")
