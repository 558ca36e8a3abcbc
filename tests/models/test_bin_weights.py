"""Weights in pickles: only tensors are read, and each fault has its own words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from weight_files import AGAIN, UP, refusal

from raysweep.errors import InputError
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model


@pytest.fixture
def pickled(whole: Path) -> Path:
    torch.save(load_file(whole / "model.safetensors"), whole / "pytorch_model.bin")
    (whole / "model.safetensors").unlink()
    return whole


def test_bin_weights_have_shapes_too(pickled: Path, kept: Path) -> None:
    assert describe(str(pickled)).shapes == describe(str(kept / "whole")).shapes
    assert len(list(load_model(describe(str(pickled))).parameters())) == len(describe(str(pickled)).shapes)


def test_bin_weights_in_the_old_container_and_in_shards(pickled: Path) -> None:
    stored = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    torch.save(stored, pickled / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    expected = describe(str(pickled)).shapes
    (pickled / "pytorch_model.bin").unlink()
    names = sorted(stored)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        torch.save({name: stored[name] for name in part}, pickled / f"pytorch_model-{i}.bin")
        weight_map |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert describe(str(pickled)).shapes == expected
    (pickled / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": weight_map | {"no": "pytorch_model-0.bin"}})
    )
    assert refusal(pickled) == (
        f"pytorch_model.bin.index.json says that tensor no is in pytorch_model-0.bin, and no shard has it; {AGAIN}"
    )


@pytest.mark.parametrize(
    ("held", "told"),
    [
        (
            {UP: torch.zeros(2), "epoch": 3},
            "pytorch_model.bin holds 'epoch', which is not a tensor but a int; save only the model's weights, "
            "preferably as safetensors",
        ),
        (
            {"optimizer": {"step": torch.zeros(2)}},
            "pytorch_model.bin holds 'optimizer', which is not a tensor but a dict; save only the model's weights, "
            "preferably as safetensors",
        ),
        ([torch.zeros(2)], "pytorch_model.bin holds a list, but a mapping of names to tensors is needed"),
        (
            {UP: torch.zeros(2, 2).to_sparse()},
            f"pytorch_model.bin: tensor {UP} is sparse or quantised, and raysweep needs a dense one",
        ),
    ],
)  # fmt: skip
def test_a_bin_file_of_anything_but_tensors(held: Any, told: str, pickled: Path) -> None:
    torch.save(held, pickled / "pytorch_model.bin")
    assert refusal(pickled) == told


@pytest.mark.parametrize("keep", [0, 100, -10])
def test_a_torn_bin_file(keep: int, pickled: Path) -> None:
    path = pickled / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"pytorch_model\.bin (is not a complete file of tensors|.*not plain tensors)"):
        describe(str(pickled))


def test_objects_in_a_bin_file_are_refused_when_described(pickled: Path) -> None:
    torch.save({"a": Path("x")}, pickled / "pytorch_model.bin")
    assert refusal(pickled) == (
        "checkpoint 'HERE' has .bin weights that are not plain tensors, and raysweep runs no pickled code; save it as safetensors"
    )


def test_a_config_that_is_no_object(whole: Path) -> None:
    (whole / "config.json").write_text("[]")
    assert refusal(whole) == "config.json is not a JSON object; save the checkpoint again"
