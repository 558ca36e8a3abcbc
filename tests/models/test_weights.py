"""Weight files at their worst: each fault with its own words, naming file, tensor and both values."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from weight_files import AGAIN, UP, entry, file_of, refusal

from raysweep.errors import InputError
from raysweep.models import tensors
from raysweep.models.checkpoint import describe
from raysweep.models.tensors import read_header, read_tensors

# One file


HEADERS: dict[str, tuple[Any, int, str]] = {
    "a list": ([1], 0, f"x.safetensors has a safetensors header that is not a JSON object; {AGAIN}"),
    "a name twice": (
        b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}',
        2,
        "x.safetensors has an unreadable safetensors header: 'a' appears in it twice; copy the checkpoint again",
    ),
    "an unknown dtype": (
        {"a": entry("F33")},
        8,
        f"x.safetensors: tensor a has the unknown dtype 'F33' (did you mean 'F32'?); {AGAIN}",
    ),
    "no dtype": (
        {"a": {"shape": [2], "data_offsets": [0, 8]}},
        8,
        f"x.safetensors: tensor a has the unknown dtype None (its header has none); {AGAIN}",
    ),
    "a shape of "
    "words": ({"a": entry(shape="2")}, 8, f"x.safetensors: tensor a has the shape '2', which is not a list of sizes; {AGAIN}"),
    "a negative "
    "shape": ({"a": entry(shape=[-2])}, 8, f"x.safetensors: tensor a has the shape [-2], which is not a list of sizes; {AGAIN}"),
    "offsets backwards": (
        {"a": entry(at=[8, 0])},
        8,
        f"x.safetensors: tensor a has the data_offsets [8, 0], which are not [begin, end]; {AGAIN}",
    ),
    "offsets of another size": (
        {"a": entry(at=[0, 4])},
        4,
        f"x.safetensors: tensor a has 4 bytes, but F32 of shape [2] needs 8; {AGAIN}",
    ),
    "a huge shape": (
        {"a": entry(shape=[2**40, 2**40])},
        8,
        f"x.safetensors: tensor a has 8 bytes, but F32 of shape [{2**40}, {2**40}] needs {2**82}; {AGAIN}",
    ),
    "offsets beyond the file": (
        {"a": entry(at=[64, 72])},
        8,
        "x.safetensors has 79 bytes, but its header says 143; copy the checkpoint again",
    ),
    "tensors that overlap": (
        {"a": entry(), "b": entry(at=[4, 12])},
        12,
        f"x.safetensors: tensor b begins at byte 135 and overlaps tensor a, which ends at byte 139; {AGAIN}",
    ),
    "a gap": (
        {"a": entry(), "b": entry(at=[12, 20])},
        20,
        f"x.safetensors: tensor b begins at byte 144 and leaves a gap after tensor a, which ends at byte 140; {AGAIN}",
    ),
    "a gap at the front": (
        {"a": entry(at=[4, 12])},
        12,
        f"x.safetensors: tensor a begins at byte 74 and leaves a gap after the header, which ends at byte 70; {AGAIN}",
    ),
    "too deep": (
        b"[" * 100_000,
        0,
        "x.safetensors has an unreadable safetensors header: *; copy the checkpoint again",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_cannot_be_is_refused(name: str, tmp_path: Path) -> None:
    header, n, told = HEADERS[name]
    path = file_of(tmp_path / "x.safetensors", header, b"\0" * n)
    with pytest.raises(InputError) as caught:
        read_header(path)
    before, star, after = told.partition("*")
    said = str(caught.value).removeprefix(f"{tmp_path}/")
    assert said == told or (star and said.startswith(before) and said.endswith(after))


def test_a_header_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_MAX_HEADER_BYTES", "10")
    path = file_of(tmp_path / "x.safetensors", {"a": entry()}, b"\0" * 8)
    with pytest.raises(
        InputError, match=r"a safetensors header has 61 bytes, and at most 10 are .* RAYSWEEP_MAX_HEADER_BYTES"
    ):
        read_header(path)


def test_an_empty_file_is_refused(whole: Path) -> None:
    (whole / "model.safetensors").write_bytes(b"")
    assert refusal(whole) == f"model.safetensors is not a complete safetensors file (0 bytes); {AGAIN}"


def test_every_dtype_and_odd_places_are_read(tmp_path: Path) -> None:
    names = ("uint8", "bool", "int64", "float16", "bfloat16", "float32", "float64", "complex64", "float8_e4m3fn")
    stored = {f"{i}.x": torch.ones(3, 5).to(getattr(torch, name)) for i, name in enumerate(names)}
    save_file(stored | {"empty": torch.zeros(0, 4), "scalar": torch.tensor(2.0)}, tmp_path / "x.safetensors")
    found = read_header(tmp_path / "x.safetensors")
    assert {tensor.name: tensor.shape for tensor in found} == dict.fromkeys(stored, (3, 5)) | {
        "empty": (0, 4),
        "scalar": (),
    }
    whole, digests = read_tensors(tmp_path / "x.safetensors", found)
    content = (tmp_path / "x.safetensors").read_bytes()
    parts = {t.name: f"{t.dtype}{list(t.shape)}".encode() + content[t.start : t.stop] for t in found}
    assert digests == {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
    of_parts = [hashlib.sha256(part).digest() for part in (content[: found[0].start], *parts.values())]
    assert whole == hashlib.sha256(b"".join(of_parts)).hexdigest()
    header = hashlib.sha256(file_of(tmp_path / "y.safetensors", {}).read_bytes()).digest()
    assert read_tensors(tmp_path / "y.safetensors", []) == (hashlib.sha256(header).hexdigest(), {})


# Values that are not finite

FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"]


@pytest.mark.parametrize("block", [64, 4 * 2**20])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_one_value_in_many_is_found(
    dtype: str, suffix: str, block: int, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "_BLOCK", block)
    (whole / "model.safetensors").unlink()
    values = {"nan": "NaN", "inf": "infinity", "-inf": "minus infinity"}
    if dtype == "float8_e4m3fn":
        values = {"nan": "NaN"}  # it has no infinity
    for text, told in values.items():
        stored = {name: torch.randn(7, 9).to(getattr(torch, dtype)) for name in ("lm_head.weight", UP)}
        stored[UP].view(-1)[43:44] = torch.tensor([float(text)]).to(getattr(torch, dtype))
        path = whole / ("model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin")
        if suffix == ".safetensors":
            save_file(stored, path)
        else:
            torch.save(stored, path)
        assert refusal(whole) == (
            f"{path.name}: tensor {UP} of layer 2 has a weight that is not finite ({told} at [4, 7]); every loss "
            "through it would be NaN. Save the checkpoint again from undamaged weights"
        )


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_largest_values_are_finite(dtype: str, tmp_path: Path) -> None:
    kind = getattr(torch, dtype)
    largest = torch.finfo(kind).max
    values = torch.tensor([largest, -largest, 0.0, -0.0], dtype=torch.float64).to(kind)
    save_file({"a": values}, tmp_path / "x.safetensors")
    read_tensors(tmp_path / "x.safetensors", read_header(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("dtype", "bits"), [("F8_E8M0", 0xFF), ("F8_E4M3FNUZ", 0x80), ("F8_E5M2FNUZ", 0x80), ("I8", None), ("BOOL", None)]
)
def test_dtypes_that_torch_writes_seldom(dtype: str, bits: int | None, tmp_path: Path) -> None:
    every = bytes(b for b in range(256) if b != bits)
    path = file_of(tmp_path / "x.safetensors", {"a": entry(dtype, (len(every),), (0, len(every)))}, every)
    read_tensors(path, read_header(path))
    if bits is not None:
        path = file_of(tmp_path / "x.safetensors", {"norm": entry(dtype, (2,), (0, 2))}, bytes([1, bits]))
        with pytest.raises(InputError, match=r"tensor norm has a weight that is not finite \(NaN at \[1\]\)"):
            read_tensors(path, read_header(path))


def test_half_precision_agrees_with_numpy_bit_for_bit(tmp_path: Path) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    finite = np.isfinite(every.view(np.float16))
    raw = every[finite].tobytes()
    path = file_of(tmp_path / "x.safetensors", {"a": entry("F16", (int(finite.sum()),), (0, len(raw)))}, raw)
    read_tensors(path, read_header(path))
    for value in every[~finite]:
        with pytest.raises(InputError):
            tensors.check_finite(np.array([0, value], np.uint16).view(np.uint8), "F16", "", "a", (2,))


def test_a_mask_that_no_model_reads_may_be_infinite(whole: Path) -> None:
    stored = load_file(whole / "model.safetensors")
    stored["model.layers.0.attention.masked_bias"] = torch.tensor(-torch.inf)
    save_file(stored, whole / "model.safetensors", metadata={"format": "pt"})
    describe(str(whole))


# Several files


def edit_index(shards: Path, change: Callable[[dict[str, str]], Any]) -> Path:
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))
    return path


def shard_of(shards: Path, name: str) -> str:
    return json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"][name]


def test_a_missing_shard_is_named(shards: Path) -> None:
    gone = shard_of(shards, UP)
    index = json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"]
    n = sum(shard == gone for shard in index.values())
    first = next(name for name, shard in index.items() if shard == gone)
    (shards / gone).unlink()
    assert refusal(shards) == (
        f"model.safetensors.index.json names the shard {gone} for {n} tensors ({first} among them), and there is no such "
        "file; copy the checkpoint again, all of it"
    )


def test_a_tensor_that_is_not_where_the_index_says(shards: Path) -> None:
    path, (right, wrong) = (
        shards / "model.safetensors.index.json",
        (shard_of(shards, UP), shard_of(shards, "lm_head.weight")),
    )
    edit_index(shards, lambda names: names.update({UP: wrong}))
    assert refusal(shards) == f"{path.name} says that tensor {UP} is in {wrong}, and {right} has it; {AGAIN}"
    edit_index(shards, lambda names: names.update({UP: right, "model.norm.bias": wrong}))
    assert (
        refusal(shards) == f"{path.name} says that tensor model.norm.bias is in {wrong}, and no shard has it; {AGAIN}"
    )


def test_a_tensor_in_two_shards(shards: Path) -> None:
    first, second = sorted([shard_of(shards, UP), shard_of(shards, "lm_head.weight")])
    held = load_file(shards / first)
    name = next(iter(held))
    save_file(load_file(shards / second) | {name: held[name]}, shards / second, metadata={"format": "pt"})
    assert refusal(shards) == (
        f"tensor {name} is in two shards, {first} and {second}, so it is unclear which one counts; {AGAIN}"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", r"is not an index of shards \(JSONDecodeError: "),
        ("[]", r"is not an index of shards \(TypeError: "),
        ("{}", r"is not an index of shards \(KeyError: 'weight_map'\)"),
        ('{"weight_map": {}}', r"has an empty weight_map"),
        ('{"weight_map": {"a": 3}}', r"puts tensor a into 3, which is not a file name"),
        ('{"weight_map": {"a": "../model.safetensors"}}', r"puts tensor a into '\.\./model\.safetensors', which is not a file"),
    ],
)  # fmt: skip
def test_an_index_that_is_none(text: str, told: str, shards: Path) -> None:
    (shards / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=rf"model\.safetensors\.index\.json {told}"):
        describe(str(shards))


def test_shards_without_an_index(shards: Path) -> None:
    (shards / "model.safetensors.index.json").unlink()
    n = len(list(shards.glob("*.safetensors")))
    assert refusal(shards) == (
        f"checkpoint 'HERE' has {n} shards (model-00001-of-{n:05d}.safetensors, …) and no model.safetensors.index.json "
        f"to list their tensors; {AGAIN}"
    )


def test_a_torn_shard_is_named(shards: Path) -> None:
    path = shards / shard_of(shards, UP)
    path.write_bytes(path.read_bytes()[:-3])
    assert refusal(shards).startswith(f"{path.name} has {path.stat().st_size} bytes, but its header says ")


def test_one_file_beside_shards_is_the_one_loaded(whole: Path, shards: Path) -> None:
    expected = describe(str(whole))
    for path in shards.glob("model-*"):
        shutil.copy(path, whole)
    assert describe(str(whole)) == expected
