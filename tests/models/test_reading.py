"""Several tensors read at once: the same values as one after the other, and nothing left over when one of them fails."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raysweep.errors import InputError
from raysweep.models import digesting, reading
from raysweep.models.checkpoint import Checkpoint, describe
from raysweep.models.digesting import THREAD
from raysweep.models.reading import READER, InterruptedReadError, TensorFiles
from raysweep.models.stream import StreamedModel

NAMES = [f"t{i}" for i in range(9)]


@pytest.fixture(autouse=True)
def no_size_is_too_small_for_several_readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(reading, "_TOGETHER", 0)
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith((READER, THREAD))]


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {name: torch.randn(40 + 10 * i, 16).bfloat16() for i, name in enumerate(NAMES)}
    save_file(tensors, tmp_path / "w.safetensors")
    return tensors


def targets_of(stored: dict[str, torch.Tensor], dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(tensor.shape, dtype=dtype) for name, tensor in stored.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_all_tensors_arrive_and_their_bytes_are_counted_once(
    dtype: torch.dtype, stored: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PIECE", 200)
    with closing(TensorFiles([tmp_path / "w.safetensors"])) as files:
        for _ in range(2):
            targets = targets_of(stored, dtype)
            files.read_all(list(targets.items()))
            for name, value in targets.items():
                assert torch.equal(value, stored[name].to(dtype)), name
            files.close()  # and it can be used again
        assert files.bytes_read == 2 * sum(tensor.nbytes for tensor in stored.values())


def test_tensors_are_read_at_the_same_time(
    stored: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, read = threading.Barrier(reading.READERS, timeout=20), os.preadv
    met = threading.Event()

    def meeting(*args: object) -> int:
        if not met.is_set():
            together.wait()  # fails unless so many threads are in a read at once
            met.set()
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", meeting)
    with closing(TensorFiles([tmp_path / "w.safetensors"])) as files:
        files.read_all(list(targets_of(stored).items())[: reading.READERS])
    assert met.is_set()


def test_a_file_cut_short_is_an_error_that_names_the_tensor_and_ends_the_other_readers(
    stored: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    with closing(TensorFiles([path])) as files:
        os.truncate(path, files.tensors["t3"].start + 8)
        with pytest.raises(InputError, match=r"w\.safetensors: tensor t\d ends at byte \d+"):
            files.read_all(list(targets_of(stored).items()))
        before = files.bytes_read
        files.read_all([("t0", target := torch.zeros(40, 16).bfloat16()), ("t1", torch.zeros(50, 16).bfloat16())])
        assert torch.equal(target, stored["t0"])
        assert files.bytes_read == before + stored["t0"].nbytes + stored["t1"].nbytes


def test_a_tensor_of_another_shape_is_refused(stored: dict[str, torch.Tensor], tmp_path: Path) -> None:
    other = ("t1", torch.zeros(2).bfloat16())
    with (
        closing(TensorFiles([tmp_path / "w.safetensors"])) as files,
        pytest.raises(InputError, match=r"tensor t1 has shape \[50, 16\], but the model has \[2\]"),
    ):
        files.read_all([*targets_of(stored).items(), other])


def test_stop_ends_all_readers(stored: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with closing(TensorFiles([tmp_path / "w.safetensors"])) as files:
        files.stop.set()
        with pytest.raises(InterruptedReadError):
            files.read_all(list(targets_of(stored).items()))
        assert files.bytes_read == 0


@pytest.mark.parametrize("change", [None, "model.layers.1.mlp.up_proj.weight", "model.layers.2.input_layernorm.weight"])
def test_every_tensor_of_a_layer_is_compared_with_the_plan(change: str | None, whole: Path) -> None:
    checkpoint: Checkpoint = describe(str(whole))
    path = whole / "model.safetensors"
    with closing(TensorFiles([path])) as files:
        place = files.tensors[change].start if change else None
    if place is not None:
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))
    model = StreamedModel(checkpoint)
    if change is None:
        assert len(list(model.layers())) == model.n_layers
        return
    with pytest.raises(InputError, match=rf"tensor {change}: planned SHA-256"):
        list(model.layers())


def test_digests_go_to_the_thread_with_the_fewest_bytes() -> None:
    threads = digesting.DigestThreads()
    n = len(threads._pools)
    begun = [threads.begin(hashlib.sha256(), size) for size in (3 * n, *[1] * (n - 1), *[1] * (n - 1))]
    threads.close()
    first = begun[0]._thread
    assert all(later._thread is not first for later in begun[1:])
