"""Loading digests what it reads: the weights are those that transformers loads alone, and any other than planned are refused."""

from __future__ import annotations

import json
import os
import shutil
import struct
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import DECODERS, ENCODERS, WRAPPERS, build
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from raysweep.errors import InputError
from raysweep.models import loading, own_copy
from raysweep.models.checkpoint import Checkpoint, describe
from raysweep.models.digesting import THREAD
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.models.own_copy import with_tensor_digests
from raysweep.models.stream import StreamedModel
from raysweep.store.artifacts import sha256_file

KINDS = {**DECODERS, **WRAPPERS, **ENCODERS}
VICTIM = "model.layers.1.mlp.up_proj.weight"
Alter = Callable[[Path, int], None]


def digest_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD)]


def same_state(one: PreTrainedModel, other: PreTrainedModel) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name


def flip_in_place(path: Path, place: int) -> None:
    """Another byte in the file itself, its time of change as before."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip_by_rename(path: Path, place: int) -> None:
    """Another file under the same name."""
    copied = path.with_name("copied")
    shutil.copy2(path, copied)
    flip_in_place(copied, place)
    copied.replace(path)


def place_of(path: Path, tensor: str) -> int:
    """Where the tensor's first byte is in a safetensors file."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return int(8 + length + json.loads(raw[8 : 8 + length])[tensor]["data_offsets"][0])


def file_with(folder: Path, tensor: str) -> Path:
    return next(path for path in sorted(folder.glob("*.safetensors")) if tensor in load_file(path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2", "bert", "gemma3_multimodal"])
def test_a_model_is_what_transformers_loads_alone(kind: str, dtype: str, tmp_path: Path) -> None:
    build(KINDS[kind]).to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="10KB")
    checkpoint = describe(str(tmp_path))
    own = load_model(checkpoint, dtype=dtype)
    auto = AutoModel if kind in ENCODERS else AutoModelForCausalLM
    more = {"add_pooling_layer": False} if kind in ENCODERS else {}
    same_state(own, auto.from_pretrained(tmp_path, dtype=getattr(torch, dtype), **more))
    assert own.name_or_path == own.config.name_or_path == str(tmp_path)
    assert not digest_threads()


def test_weights_are_not_mapped_from_the_file(whole: Path) -> None:
    model = load_model(describe(str(whole)))
    before = model.get_parameter(VICTIM).clone()
    flip_in_place(whole / "model.safetensors", place_of(whole / "model.safetensors", VICTIM) + 3)
    assert torch.equal(model.get_parameter(VICTIM), before)


@pytest.mark.parametrize("alter", [flip_in_place, flip_by_rename])
@pytest.mark.parametrize("layout", ["whole", "shards"])
def test_a_changed_tensor_is_refused_by_name(layout: str, alter: Alter, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(layout)
    checkpoint = describe(str(folder))
    path = file_with(folder, VICTIM)
    alter(path, place_of(path, VICTIM))
    planned = checkpoint.digests[VICTIM][:16]
    now = describe(str(folder)).digests[VICTIM][:16]
    told = (
        rf"^checkpoint '{folder}' is not the planned one: {path}: tensor {VICTIM}: planned SHA-256 {planned}, found SHA-256 "
        rf"{now} on host \S+\. The checkpoint changed after the run was planned, or this node has another one"
    )
    for load in (load_model, lambda c: list(StreamedModel(c).layers())):
        with pytest.raises(InputError, match=told):
            load(checkpoint)
    assert not digest_threads()


def test_a_streamed_layer_is_digested_each_time_it_is_read(whole: Path) -> None:
    model = StreamedModel(describe(str(whole)), dtype="bfloat16")  # converted piece by piece
    assert len(list(model.layers())) == model.n_layers
    path = whole / "model.safetensors"
    flip_in_place(path, place_of(path, VICTIM))
    with pytest.raises(InputError, match=rf"model\.safetensors: tensor {VICTIM}: planned"):
        list(model.layers())
    flip_in_place(path, place_of(path, VICTIM))
    assert len(list(model.layers())) == model.n_layers


def test_streamed_experts_that_are_fused_are_digested_too(tmp_path: Path) -> None:
    build(DECODERS["mixtral"]).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    checkpoint = describe(str(tmp_path))
    (name, *_) = sorted(name for name in load_file(path) if ".experts." in name)
    flip_by_rename(path, place_of(path, name))
    for load in (load_model, lambda c: list(StreamedModel(c).layers())):
        with pytest.raises(InputError, match=rf"tensor {name.replace('.', '[.]')}: planned"):
            load(checkpoint)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop(VICTIM), rf"tensor {VICTIM}: planned F32 \[40, 16\], found no such tensor"),
        (lambda t: t.update(more=torch.ones(2)), r"tensor more: planned no such tensor, found F32 \[2\]"),
        (
            lambda t: t.update({VICTIM: t[VICTIM].bfloat16()}),
            rf"tensor {VICTIM}: planned F32 \[40, 16\], found BF16 \[40, 16\]",
        ),
    ],
)
def test_another_header_is_refused_before_anything_is_read(
    change: Callable[[dict[str, torch.Tensor]], object], told: str, whole: Path
) -> None:
    checkpoint, path = describe(str(whole)), whole / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    for load in (load_model, StreamedModel):
        with pytest.raises(InputError, match=told):
            load(checkpoint)


@pytest.mark.parametrize("alter", [flip_in_place, flip_by_rename])
def test_bin_weights_are_compared_as_whole_files(alter: Alter, whole: Path) -> None:
    tensors = load_file(whole / "model.safetensors")
    expected = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    torch.save(tensors, whole / "pytorch_model.bin")
    (whole / "model.safetensors").unlink()
    checkpoint = describe(str(whole))
    model = load_model(checkpoint)
    same_state(model, expected)
    path = whole / "pytorch_model.bin"
    alter(path, path.stat().st_size // 2)
    same_state(model, expected)
    planned, found = checkpoint.files[path.name][:16], sha256_file(path)[:16]
    with pytest.raises(InputError, match=rf"{path}: planned SHA-256 {planned}, found SHA-256 {found}"):
        load_model(checkpoint)
    assert not digest_threads()


@pytest.mark.parametrize("in_memory", [True, False])
def test_weights_that_code_of_their_own_unpacks_are_copied(
    in_memory: bool, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As quantised ones are, which no quantiser that is installed could load here."""
    monkeypatch.setattr(loading, "is_quantised", lambda checkpoint: True)
    if not in_memory:
        monkeypatch.delattr(own_copy.os, "memfd_create")
    checkpoint = describe(str(shards))
    same_state(load_model(checkpoint), AutoModelForCausalLM.from_pretrained(shards, dtype=torch.float32))
    path = file_with(shards, VICTIM)
    flip_in_place(path, place_of(path, VICTIM))
    with pytest.raises(InputError, match=rf"{path}: tensor {VICTIM}: planned"):
        load_model(checkpoint)


def edit_settings(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def adapter_of(base: Path, folder: Path) -> Checkpoint:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's own, about transformers
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    return describe(str(folder))


def test_an_adapters_files_are_compared(whole: Path, tmp_path: Path) -> None:
    base, adapter = describe(str(whole)), adapter_of(whole, tmp_path / "adapter")
    merged = load_model(adapter, base=base)
    assert not torch.equal(
        merged.get_parameter("model.layers.0.self_attn.q_proj.weight"),
        load_model(base).get_parameter("model.layers.0.self_attn.q_proj.weight"),
    )
    path = adapter.folder / "adapter_model.safetensors"
    name = next(iter(load_file(path)))
    flip_by_rename(path, place_of(path, name))
    with pytest.raises(InputError, match=rf"'{adapter.source}' is not the planned one: {path}: tensor {name}: planned"):
        load_model(adapter, base=base)
    flip_in_place(path, place_of(path, name))
    load_model(adapter, base=base)
    edit_settings(adapter.folder / "adapter_config.json", lora_alpha=1)
    with pytest.raises(InputError, match=r"adapter_config\.json: planned SHA-256"):
        load_model(adapter, base=base)


def test_another_config_is_refused(whole: Path) -> None:
    checkpoint = describe(str(whole))
    edit_settings(whole / "config.json", rms_norm_eps=1e-3)
    for load in (load_model, StreamedModel):
        with pytest.raises(InputError, match=r"config\.json: planned SHA-256 \w{16}, found SHA-256 \w{16} on host"):
            load(checkpoint)


def test_a_config_that_changes_while_the_model_is_loaded_is_refused(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = loading.standard_config

    def changing(folder: Path) -> object:
        edit_settings(whole / "config.json", rms_norm_eps=1e-3)
        return read(folder)

    checkpoint = describe(str(whole))
    monkeypatch.setattr(loading, "standard_config", changing)
    with pytest.raises(InputError, match=r"config\.json: planned SHA-256"):
        load_model(checkpoint)


@pytest.mark.parametrize("change", ["other", "new", "gone"])
def test_another_tokenizer_is_refused(change: str, whole: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.save_pretrained(whole)
    checkpoint = describe(str(whole))
    assert load_tokenizer(checkpoint).get_vocab() == tokenizer.get_vocab()
    name = {"other": "tokenizer.json", "new": "added_tokens.json", "gone": "chat_template.jinja"}[change]
    if change == "gone":
        (whole / name).unlink()
    else:
        (whole / name).write_text("{}")
    with pytest.raises(InputError, match=rf"is not the planned one: {whole / name}: planned"):
        load_tokenizer(checkpoint)


def as_made(folder: Path) -> Checkpoint:
    """As a run knows a checkpoint that it made: digests of whole files, from a manifest."""
    whole = describe(str(folder))
    files = {path.name: sha256_file(path) for path in folder.iterdir()}
    return replace(whole, digests={}, dtypes={}, files=files, manifest="run/chunks/it.json")


def test_what_a_run_made_is_compared_with_its_manifest(shards: Path) -> None:
    checkpoint, expected = as_made(shards), describe(str(shards))
    assert with_tensor_digests(checkpoint).digests == expected.digests
    same_state(load_model(checkpoint), load_model(expected))
    assert len(list(StreamedModel(checkpoint).layers())) == checkpoint.n_layers
    path = file_with(shards, VICTIM)
    flip_in_place(path, place_of(path, VICTIM))
    told = (
        rf"{path}: planned SHA-256 {checkpoint.files[path.name][:16]}, .* Remove run/chunks/it\.json to create it again"
    )
    for load in (load_model, StreamedModel):
        with pytest.raises(InputError, match=told):
            load(checkpoint)


def test_weights_that_do_not_fit_are_offloaded_to_a_copy(whole: Path) -> None:
    """accelerate reads them again for every call, then from its own files."""
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i == 1 else "cpu" for i in range(4)}
    checkpoint, tokens = describe(str(whole)), torch.arange(8)[None]
    expected = load_model(checkpoint)(input_ids=tokens).logits
    model = load_model(checkpoint, device_map=places)
    path = whole / "model.safetensors"
    flip_in_place(path, place_of(path, VICTIM) + 3)
    assert torch.equal(model(input_ids=tokens).logits, expected)
