"""Which errors are the machine's, in every library's words, and that none of them is taken for bad input."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import DECODERS, build
from safetensors import SafetensorError
from transformers import PreTrainedModel

from raysweep.errors import InputError
from raysweep.models import adapter, loading, own_copy, quantisation, reading
from raysweep.models.adapter import Adapter
from raysweep.models.checkpoint import Checkpoint, describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.models.machine_errors import is_machine_error, is_out_of_memory
from raysweep.studies.finetune import finetune
from raysweep.studies.training import Recipe

Build = Callable[..., PreTrainedModel]
Save = Callable[..., Checkpoint]

SEARCH = (
    "\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/cuda-runtime-api for more information."
)
NO_MEMORY: list[BaseException] = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"),
    torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory."),
    torch.AcceleratorError(f"CUDA error: out of memory{SEARCH}"),  # a context, pinned memory, a graph
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA driver error: out of memory"),  # expandable segments
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("CUDA error: resource allocation failed when calling `cusparseCreate(handle)`"),
    RuntimeError("HIP out of memory. Tried to allocate 16.00 MiB"),
    RuntimeError("HIP error: hipErrorOutOfMemory"),
    RuntimeError("rocblas error: rocblas_status_memory_error"),
    RuntimeError("MPS backend out of memory (MPS allocated: 7.64 GiB, max allowed: 9.07 GiB). Tried to allocate 1 GiB"),
    RuntimeError("Invalid buffer size: 21.61 GiB"),
    RuntimeError("XPU out of memory. Tried to allocate 1.00 GiB"),
    RuntimeError("UR backend failed. UR backend returns:39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    torch.distributed.DistBackendError(
        "NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled cuda error (run with NCCL_DEBUG=INFO for details)\n"
        "Last error:\nCuda failure 2 'out of memory'"
    ),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("unable to mmap 4096 bytes from file </w/model.safetensors>: Cannot allocate memory (12)"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("Caught OutOfMemoryError in DataLoader worker process 0."),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    SafetensorError("Error while memory mapping: Cannot allocate memory (os error 12)"),
]
OF_A_DEVICE: list[BaseException] = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(…)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("HIP error: unspecified launch failure"),
    torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled system error"),
]
OTHERS: list[BaseException] = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ValueError("not enough memory"),
    InputError("records.jsonl: line 3: CUDA error: out of memory"),
    KeyError("model.layers.0"),
    OSError(errno.ENOENT, "No such file or directory"),
    SafetensorError("Error while deserializing header: header too large"),
]


def in_words(error: object) -> str:
    return str(error)[:50]


@pytest.mark.parametrize("error", NO_MEMORY, ids=in_words)
def test_memory_that_runs_out_in_the_words_of_each_library(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert is_machine_error(error)


@pytest.mark.parametrize("error", OF_A_DEVICE, ids=in_words)
def test_a_device_that_failed_is_not_out_of_memory(error: BaseException) -> None:
    assert not is_out_of_memory(error)
    assert is_machine_error(error)


@pytest.mark.parametrize("error", OTHERS, ids=in_words)
def test_other_errors_are_neither(error: BaseException) -> None:
    assert not is_out_of_memory(error)
    assert not is_machine_error(error)


@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(2**60, dtype=torch.uint8), lambda: bytearray(2**60)], ids=["torch", "Python"]
)
def test_what_this_machine_raises(allocate: Callable[[], object]) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        allocate()
    assert is_out_of_memory(raised.value)


class TaskError(Exception):
    """As Ray raises what a task raised."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("a task failed")
        self.cause = cause


def test_an_error_that_comes_from_one_is_one() -> None:
    short = torch.OutOfMemoryError("CUDA out of memory")
    from_cause, in_context = RuntimeError("conversion failed"), RuntimeError("conversion failed")
    from_cause.__cause__, in_context.__context__ = ValueError("a"), ValueError("b")
    from_cause.__cause__.__cause__ = in_context.__context__.__context__ = short
    for error in (from_cause, in_context, TaskError(short), ExceptionGroup("threads", [ValueError("c"), short])):
        assert is_out_of_memory(error), error


def test_what_an_error_hides_on_purpose_does_not_count_and_a_circle_ends() -> None:
    hidden, circle = RuntimeError("other"), RuntimeError("circle")
    hidden.__context__, hidden.__suppress_context__ = MemoryError(), True
    circle.__cause__ = circle
    assert not is_out_of_memory(hidden)
    assert not is_out_of_memory(circle)


# where input is refused


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: Any, **more: Any) -> Any:
        raise error

    return fail


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
]


@pytest.fixture(params=ERRORS, ids=in_words)
def error(request: pytest.FixtureRequest) -> BaseException:
    """An error of the machine, new for each test."""
    made: BaseException = type(request.param)(*request.param.args)
    return made


def test_loading_does_not_refuse_a_checkpoint_for_it(
    error: BaseException, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save("a")
    made, _ = loading._class_of(checkpoint)
    monkeypatch.setattr(made, "from_pretrained", failing(error))
    with pytest.raises(type(error)) as raised:
        load_model(checkpoint)
    assert raised.value is error


def test_nor_for_one_in_a_thread_that_reads(error: BaseException, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.core_model_loading._materialize_copy", failing(error))
    with pytest.raises(type(error)) as raised:
        load_model(save("a"))
    assert is_machine_error(raised.value)


def test_nor_for_one_that_transformers_only_logs(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(DECODERS["mixtral"]).save_pretrained(tmp_path)  # whose experts are put together while they are loaded
    monkeypatch.setattr("transformers.core_model_loading.MergeModulelist.convert", failing(error))
    with pytest.raises(RuntimeError, match=str(error)[:30]) as raised:
        load_model(describe(str(tmp_path)))
    assert is_machine_error(raised.value)
    assert is_out_of_memory(raised.value) is is_out_of_memory(error)


def test_another_conversion_that_fails_is_refused_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(DECODERS["mixtral"]).save_pretrained(tmp_path)
    monkeypatch.setattr("transformers.core_model_loading.MergeModulelist.convert", failing(ValueError("odd experts")))
    with pytest.raises(InputError, match=r"could not be loaded: ValueError: odd experts .* tensors destined for model"):
        load_model(describe(str(tmp_path)))


@pytest.mark.parametrize("at", ["first", "replayed"])
def test_the_probe_does_not_refuse_a_model_for_it(
    at: str, error: BaseException, tiny: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("llama", 2)
    if at == "first":
        monkeypatch.setattr(model.model.layers[0], "forward", failing(error))
    else:
        monkeypatch.setattr(adapter, "apply_block", failing(error))
    with pytest.raises(type(error)):
        Adapter(model)


def test_merging_does_not_refuse_an_adapter_for_it(
    error: BaseException, save: Save, save_lora: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, lora = save("base"), save_lora("lora")
    for name in (
        "peft.set_peft_model_state_dict",
        "raysweep.models.peft_fit._run",
        "raysweep.models.peft_merge.probe_tokens",
        "peft.PeftModel.load_adapter",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, failing(error))
            with pytest.raises(type(error)):
                load_model(lora, base=base)


def test_nor_do_the_other_readers(error: BaseException, save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save("a")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", failing(error))
    with pytest.raises(type(error)):
        load_tokenizer(checkpoint)
    monkeypatch.setattr(quantisation, "is_quantised", lambda checkpoint: True)
    monkeypatch.setattr(quantisation, "_method", lambda checkpoint: "fp8")
    monkeypatch.setattr("transformers.quantizers.AutoHfQuantizer.from_config", failing(error))
    quantised = replace(checkpoint, config={**checkpoint.config, "quantization_config": {}})
    with pytest.raises(type(error)):
        quantisation.check_quantised(quantised, "cuda")


def test_a_file_that_cannot_be_read_for_want_of_memory(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, short = save("a"), OSError(errno.ENOMEM, "Cannot allocate memory")
    files = reading.TensorFiles([checkpoint.folder / "model.safetensors"])
    monkeypatch.setattr(reading, "fill", failing(short))
    with pytest.raises(OSError, match="allocate") as raised:
        files.read_into("model.norm.weight", torch.empty(files.tensors["model.norm.weight"].shape))
    assert is_out_of_memory(raised.value)
    files.close()
    monkeypatch.setattr(own_copy, "fill", failing(short))
    monkeypatch.setattr(own_copy, "fill_digested", failing(short))
    with pytest.raises(OSError, match="allocate"), own_copy.own_copy(checkpoint):
        pass


def test_a_training_does_not_refuse_its_recipe_for_it(
    error: BaseException,
    save: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    random_examples: Any,
    tokenizer: Any,
) -> None:
    base, examples = save("a"), random_examples(3)
    for name in ("transformers.TrainingArguments.__post_init__", "transformers.Trainer.__init__"):
        with monkeypatch.context() as patch:
            patch.setattr(name, failing(error))
            with pytest.raises(type(error)):
                finetune(base, tokenizer, examples, examples, Recipe(arguments={"max_steps": 1}), tmp_path / "run")
