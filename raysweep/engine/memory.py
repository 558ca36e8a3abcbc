"""Out of memory: how many tokens a batch may still have on this worker, and what to say if nothing smaller can be tried."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection

from raysweep.engine.calls import BackdoorCall, CaptureCall, Loading, ModelCall, TrainCall
from raysweep.errors import RaysweepError, RunError
from raysweep.models.memory import free_bytes

_MORE = 1.05  # times as much free memory as a model did not fit in, for which loading it is tried again


class DoesNotFitError(RunError):
    """A model for which there is not enough memory now, even with no other loaded.

    Not final: another worker may have more memory, and what other processes take on a GPU may be free later.
    """


class Unfit:
    """The models that did not fit on this worker, so that each of their calls does not take the minutes of a load to fail."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], tuple[int, str]] = {}

    def add(self, call: ModelCall, error: DoesNotFitError) -> None:
        """Note that the call's models do not fit in what is free now."""
        self._found[_models(call)] = (_free(call.loading), str(error))

    def check(self, call: ModelCall, keep_only: Callable[[Collection[str]], object]) -> None:
        """Raise DoesNotFitError if the call's models did not fit, and no more memory is free with them alone (`keep_only`)."""
        if (found := self._found.get(_models(call))) is None:
            return
        keep_only(call.affinity)
        free, words = found
        if _free(call.loading) <= _MORE * free:
            raise DoesNotFitError(words)


def _models(call: ModelCall) -> tuple[object, ...]:
    return (call.affinity, call.loading.dtype, call.loading.stream)


def _free(loading: Loading) -> int:
    """Bytes free on the devices that a model is loaded on."""
    import torch

    if loading.device_map is None or not torch.cuda.is_available():
        return free_bytes(loading.device)
    return sum(free_bytes(f"cuda:{index}") for index in range(torch.cuda.device_count()))


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
    text = str(error) if isinstance(error, RaysweepError) else traceback.format_exception_only(error)[-1]
    return text.strip().splitlines()[0]


def does_not_fit(source: str, loading: Loading, error: BaseException) -> DoesNotFitError:
    """Return the error of a checkpoint that cannot be loaded for want of memory, with no other one to unload."""
    ways = "give a worker more memory, fewer workers per GPU, or more GPUs (execution.gpus_per_worker)"
    if loading.dtype in ("float32", "float64"):
        ways = f"set the model's dtype to bfloat16, or {ways}"
    if not loading.stream:
        ways = f"set execution.residency to stream, {ways}"
    how = " with its layers on disk" if loading.stream else ""
    return DoesNotFitError(
        f"checkpoint '{source}' does not fit in the memory of {loading.device} in {loading.dtype}{how} "
        f"({_first_line(error)}); {ways}"
    )
