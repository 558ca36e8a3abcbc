"""The device of a training is the one that was asked for, whatever else is visible; GPUs are pretended."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.state
import pytest
import torch

from raysweep.errors import RunError
from raysweep.studies import sharding
from raysweep.studies.trainer_arguments import make_arguments
from raysweep.studies.training import Recipe
from raysweep.studies.training_device import check_device, training_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Two GPUs, of which the process uses the first."""
    now = SimpleNamespace(current=0, used=[])

    def use(device: Any) -> None:
        now.current = device if isinstance(device, int) else torch.device(device).index
        now.used.append(now.current)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: now.current)
    monkeypatch.setattr(torch.cuda, "set_device", use)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *more: True)
    monkeypatch.setattr(accelerate.state, "check_cuda_p2p_ib_support", lambda: True)
    monkeypatch.delenv("ACCELERATE_TORCH_DEVICE", raising=False)
    return now


def made(folder: Path, device: torch.device, **arguments: Any) -> Any:
    recipe = Recipe(arguments={"per_device_train_batch_size": 4, **arguments})
    return make_arguments(recipe, folder, 100, device=str(device), strategy="ddp", processes=1, resumed=False)


@pytest.mark.parametrize(("asked", "index"), [("cuda:1", 1), ("cuda:0", 0), ("cuda", 0)])
def test_one_gpu_of_several_is_used_and_no_other(asked: str, index: int, tmp_path: Path, gpus: Any) -> None:
    with training_device(asked) as device:
        arguments = made(tmp_path, device)
        assert arguments.device == device == torch.device("cuda", index)
        assert accelerate.state.PartialState().device == device
        assert (arguments.n_gpu, arguments.train_batch_size, arguments.parallel_mode.value) == (1, 4, "not_parallel")
        assert gpus.current == index
    assert set(gpus.used) <= {index, 0}
    assert gpus.used[: len(gpus.used) - 1] == [index], "the other GPU is not touched"
    assert gpus.current == 0
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ
    accelerate.state.PartialState._reset_state()


def test_cuda_is_the_gpu_that_the_process_uses(gpus: Any) -> None:
    gpus.current = 1
    with training_device("cuda") as device:
        assert device == torch.device("cuda:1")
    assert gpus.current == 1


def test_the_default_is_restored_after_an_error(gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda:0")
    with pytest.raises(KeyboardInterrupt), training_device("cuda:1"):
        raise KeyboardInterrupt
    assert (gpus.current, os.environ["ACCELERATE_TORCH_DEVICE"]) == (0, "cuda:0")


def test_a_cpu_is_used_where_there_are_gpus(tmp_path: Path, gpus: Any) -> None:
    with training_device("cpu") as device:
        arguments = made(tmp_path, device)
        assert (arguments.device, arguments.n_gpu, arguments.accelerator_config.non_blocking) == (device, 0, False)
    assert gpus.used == []
    accelerate.state.PartialState._reset_state()


def test_one_of_several_processes_uses_its_own_gpu(tmp_path: Path, gpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate would take the GPU that is numbered as the process is on its node."""
    monkeypatch.setattr(sharding, "processes", lambda: 2)
    state = SimpleNamespace(distributed_type=accelerate.state.DistributedType.MULTI_GPU, device=torch.device("cuda:1"))
    with training_device("cuda:1"):
        found = accelerate.state.PartialState()
        assert found.device == state.device
    accelerate.state.PartialState._reset_state()


def test_batches_go_to_a_gpu_while_it_computes(tmp_path: Path, gpus: Any) -> None:
    with training_device("cuda") as device:
        assert made(tmp_path, device).accelerator_config.non_blocking is True
        assert made(tmp_path, device, dataloader_pin_memory=False).accelerator_config.non_blocking is False
    accelerate.state.PartialState._reset_state()


def test_another_device_is_refused() -> None:
    def trainer(at: str, accelerator: str, n_gpu: int = 1) -> Any:
        arguments = SimpleNamespace(device=torch.device(at), n_gpu=n_gpu)
        return SimpleNamespace(args=arguments, accelerator=SimpleNamespace(device=torch.device(accelerator)))

    check_device(trainer("cuda:1", "cuda:1"), torch.device("cuda:1"))
    check_device(trainer("mps", "mps:0"), torch.device("mps"))
    with pytest.raises(RunError, match=r"to run on cuda:1, but transformers' trainer chose cuda:0; report"):
        check_device(trainer("cuda:0", "cuda:1"), torch.device("cuda:1"))
    with pytest.raises(RunError, match=r"to run on cuda:1, but accelerate chose cuda:0; report"):
        check_device(trainer("cuda:1", "cuda:0"), torch.device("cuda:1"))
    with pytest.raises(RunError, match=r"to run on cuda:1 alone, .* split batches over 2 GPUs"):
        check_device(trainer("cuda:1", "cuda:1", n_gpu=2), torch.device("cuda:1"))
