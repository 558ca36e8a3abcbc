"""Out of memory: telling it from other errors, and how many tokens a batch may still have on this worker."""

from __future__ import annotations

import gc
import traceback

from raysweep.engine.calls import BackdoorCall, CaptureCall, ModelCall, TrainCall

_CPU_WORDS = ("not enough memory", "can't allocate memory", "cannot allocate memory")  # of torch's allocator


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a device or on the host."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _CPU_WORDS)


class Budgets:
    """The padded tokens of a batch by model: as its calls have it, and half of that each time memory runs out."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}

    def of(self, call: ModelCall) -> int:
        """The tokens of a batch of this call."""
        return min(call.loading.batch_tokens, self._tokens.get(call.base.fingerprint, call.loading.batch_tokens))

    def halve(self, call: ModelCall) -> bool:
        """Halve the tokens for the call's model; False where a batch has one example already and no less can be tried."""
        tokens = self.of(call)
        if tokens <= min(_length(call, place) for place in range(len(call.examples))):
            return False
        self._tokens[call.base.fingerprint] = max(1, tokens // 2)
        return True


def _length(call: ModelCall, place: int) -> int:
    """Tokens of an example as the call takes it."""
    example = call.examples[place]
    return max(1, example.n_prompt if isinstance(call, CaptureCall) else example.length - 1)


def is_training(call: ModelCall) -> bool:
    """Whether the call trains, so that the tokens of a batch are not to be chosen."""
    return (
        isinstance(call, TrainCall) and call.made is None and not (isinstance(call, BackdoorCall) and not call.trains)
    )


def let_go(device: str) -> None:
    """Give back what the failed attempt held."""
    import torch

    gc.collect()
    if device.startswith("cuda") and torch.cuda.is_available():
        torch.cuda.empty_cache()


def too_much_to_train(call: ModelCall, error: BaseException) -> str:
    """Words for a training that does not fit."""
    return (
        f"'{call.name}' runs out of memory on {call.loading.device} ({_first_line(error)}); lower trainer's "
        "per_device_train_batch_size and raise gradient_accumulation_steps, set gradient_checkpointing to true, lower "
        "max_tokens of its data set's train, or use more processes"
    )


def too_large(call: ModelCall, error: BaseException) -> str:
    """Words for a call that does not fit one example at a time."""
    longest = max(_length(call, place) for place in range(len(call.examples)))
    return (
        f"'{call.name}' runs out of memory on {call.loading.device} with one example at a time, the longest of {longest} tokens "
        f"({_first_line(error)}); set execution.residency to stream, lower max_tokens of its data set, or give a "
        "worker more memory"
    )


def _first_line(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip().splitlines()[0]
