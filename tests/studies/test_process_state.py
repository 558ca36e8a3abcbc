"""A training leaves the process as it was: precision, determinism, seeds, environment, and accelerate's shared state."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from transformers import training_args
from transformers.trainer_utils import enable_full_determinism
from transformers.utils.import_utils import enable_tf32

from raysweep.data.examples import Example
from raysweep.errors import RunError
from raysweep.models.checkpoint import describe
from raysweep.studies import trainer
from raysweep.studies.finetune import finetune
from raysweep.studies.process_state import restored_process_state
from raysweep.studies.trainer_arguments import check_arguments
from raysweep.studies.training import Recipe

_KEYS = [(backend, operation) for backend in ("cuda", "mkldnn") for operation in ("all", "matmul", "conv", "rnn")]


def readable(get: Callable[[], Any]) -> Any:
    """A setting by its older name, which torch refuses to read once newer ones contradict it."""
    try:
        return get()
    except RuntimeError:
        return "refused"


def state() -> dict[str, Any]:
    """Everything that a training may change and has to set back."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return {
        "precision": [torch._C._get_fp32_precision_getter(*key) for key in [("generic", "all"), *_KEYS]],
        "older precision": (
            readable(torch.get_float32_matmul_precision),
            readable(lambda: cuda.matmul.allow_tf32),
            readable(lambda: cudnn.allow_tf32),
        ),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        "reductions": (
            cuda.matmul.allow_fp16_reduced_precision_reduction,
            cuda.matmul.allow_bf16_reduced_precision_reduction,
            cuda.matmul.allow_bf16_reduced_precision_reduction_split_k,
            cuda.matmul.allow_fp16_accumulation,
        ),
        "attention": (
            *(cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
            cuda.cudnn_sdp_enabled(),
        ),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "anomalies": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "defaults": (torch.get_default_dtype(), torch.get_num_threads()),
        "draws": (torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())),
        "environment": dict(os.environ),
        "accelerate": [dict(kind._shared_state) for kind in (PartialState, AcceleratorState, GradientState)],
    }


@pytest.fixture
def tf32_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine where TF32 may be asked for."""
    monkeypatch.setattr(training_args, "is_torch_tf32_available", lambda: True)
    enable_tf32.cache_clear()


@pytest.fixture(scope="module")
def base(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("base")
    tiny("llama", 2).save_pretrained(folder)
    return describe(str(folder))


def train(base: Any, folder: Any, **arguments: Any) -> None:
    rows = [Example(i, np.arange(3, 12), 3, "", "") for i in range(4)]
    recipe = Recipe(arguments={"max_steps": 1, "save_strategy": "no", "learning_rate": 1e-2, **arguments})
    finetune(base, None, rows, rows, recipe, folder)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"tf32": True}, {"tf32": False}, {"full_determinism": True}, {"bf16": True}])
def test_nothing_of_a_training_is_left(
    arguments: dict[str, Any], base: Any, tmp_path: Any, tf32_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    during: list[dict[str, Any]] = []
    step = trainer.StudyTrainer.training_step

    def watched(self: Any, *more: Any) -> Any:
        during.append(state())
        return step(self, *more)

    monkeypatch.setattr(trainer.StudyTrainer, "training_step", watched)
    PartialState._shared_state.clear()
    before = state()
    for attempt in ("one", "two"):
        train(base, tmp_path / attempt, **arguments)
        assert state() == before
    if "tf32" in arguments:
        expected = "tf32" if arguments["tf32"] else "ieee"
        assert [told["precision"][0] for told in during] == [expected] * 2, "each training gets what it asks for"
    if "full_determinism" in arguments:
        assert all(told["deterministic"][0] and told["cudnn"][2] for told in during)


def test_nothing_is_left_of_one_that_fails(base: Any, tmp_path: Any, tf32_here: None) -> None:
    before = state()
    with pytest.raises(RunError, match="the test loss is nan"):
        train(base, tmp_path, tf32=True, full_determinism=True, learning_rate=1e30, max_grad_norm=0)
    assert state() == before


def test_nothing_is_left_of_a_check_of_arguments() -> None:
    PartialState(cpu=True)
    before = state()
    check_arguments({"torch_compile": True, "learning_rate": 1}, "here")
    assert state() == before
    PartialState._reset_state()


def change_everything() -> None:
    enable_full_determinism(3)
    enable_tf32(True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.autograd.set_detect_anomaly(True, check_nan=False)
    torch.set_default_dtype(torch.float64)
    torch.backends.cudnn.enabled = False
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (False, False)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    for kernel in ("flash", "mem_efficient", "cudnn"):
        getattr(torch.backends.cuda, f"enable_{kernel}_sdp")(False)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch._C._set_fp32_precision_setter("cuda", "matmul", "tf32")
    os.environ["PATH"] = os.environ.pop("HOME", "")
    PartialState(cpu=True)
    torch.rand(3), random.random(), np.random.rand()


def test_every_setting_is_restored() -> None:
    before = state()
    with restored_process_state():
        change_everything()
        assert state().keys() == {
            name for name, value in state().items() if value != before[name] or name == "defaults"
        }
    assert state() == before
