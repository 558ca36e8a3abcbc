"""Out of memory: batches of half as many tokens, remembered for the model, told, and a clear end at one example."""

from __future__ import annotations

from dataclasses import replace
from weakref import ref

import pytest
import torch

from raysweep.engine import events, memory, residents, work
from raysweep.engine.calls import CaptureCall, SubstituteCall
from raysweep.engine.driver import drive
from raysweep.engine.memory import Budgets
from raysweep.engine.pending import model_calls
from raysweep.engine.plan import plan
from raysweep.engine.work import Worker
from raysweep.progress import Tally
from raysweep.studies.substitution import sweep_losses

ON_A_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried …"
)

FULL = torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def calls(small):
    return list(model_calls(*small, plan(*small), set()))


@pytest.fixture
def small_device(monkeypatch):
    """small_device(fits): sweeps whose batches have more than `fits` tokens run out of memory; what was tried is kept."""
    tried = []

    def make(fits, error=torch.OutOfMemoryError):
        sweep = work.sweep_losses

        def of_a_small_device(*args, batch_tokens, **how):
            tried.append(batch_tokens)
            if batch_tokens > fits:
                raise error("no room") if isinstance(error, type) else error
            return sweep(*args, batch_tokens=batch_tokens, **how)

        monkeypatch.setattr(work, "sweep_losses", of_a_small_device)
        return tried

    return make


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, ON_A_CPU])
def test_batches_are_halved_until_they_fit_and_that_is_remembered(calls, small_device, tmp_path, error):
    tried = small_device(200, error)
    sweeps = [call for call in calls if isinstance(call, SubstituteCall)]
    worker, roomy = Worker(tmp_path), Worker(tmp_path)
    first, second = (worker.attempt(call) for call in sweeps[:2])
    assert tried == [1024, 512, 256, 128, 128]
    assert (first.error, second.error) == (None, None)
    assert (first.measured["out_of_memory"], first.measured["batch_tokens"]) == (3, 128)
    assert "out_of_memory" not in second.measured
    small_device(10**9)
    plain = roomy.attempt(sweeps[0]).commits[0].table.to_pandas()
    told = first.commits[0].table.to_pandas()
    assert told.drop(columns="loss").equals(plain.drop(columns="loss"))
    assert told["loss"].to_numpy() == pytest.approx(plain["loss"].to_numpy(), abs=1e-5)


def test_other_checkpoints_make_room_before_batches_get_smaller(calls, tmp_path):
    sweep = next(call for call in calls if isinstance(call, SubstituteCall))
    other = replace(sweep.tuned, fingerprint="other")
    worker = Worker(tmp_path, 3)
    worker.attempt(replace(sweep, tuned=other))
    tried = []

    def first_short(*args, batch_tokens, **how):
        tried.append(batch_tokens)
        if len(tried) == 1:  # the other checkpoint is still there
            raise torch.OutOfMemoryError("no room")
        return sweep_losses(*args, batch_tokens=batch_tokens, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "sweep_losses", first_short)
        outcome = worker.attempt(sweep)
    assert outcome.error is None
    assert tried == [1024, 1024]
    assert (outcome.measured["out_of_memory"], outcome.measured["evictions"]) == (1, 1)


def test_one_example_at_a_time_that_does_not_fit_is_told(calls, small_device, tmp_path):
    tried = small_device(0)
    call = next(call for call in calls if isinstance(call, SubstituteCall))
    outcome = Worker(tmp_path).attempt(call)
    shortest, longest = (pick(example.length - 1 for example in call.examples) for pick in (min, max))
    assert tried[-1] <= shortest < tried[-2]
    assert outcome.failure == "refused", "it would come again"
    assert outcome.error == (
        f"'{call.name}' runs out of memory on cpu with one example at a time, the longest of {longest} tokens "
        "(torch.OutOfMemoryError: no room); set execution.residency to stream, lower max_tokens of its data set, or "
        "give a worker more memory"
    )
    assert "no room" in outcome.traceback


@pytest.fixture
def full_device(monkeypatch):
    """full_device(fits, error): loads run out of memory if the worker would have more than `fits` models; what was tried is kept."""
    tried, alive = [], []

    def make(fits, error=FULL, free=lambda: 100):
        load = residents.load_model

        def of_a_full_device(checkpoint, **how):
            tried.append(checkpoint.folder.name)
            if sum(model() is not None for model in alive) >= fits:
                raise type(error)(*error.args)
            model = load(checkpoint, **how)
            alive.append(ref(model))
            return model

        monkeypatch.setattr(residents, "load_model", of_a_full_device)
        monkeypatch.setattr(memory, "free_bytes", lambda device: free())
        return tried

    return make


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), torch.AcceleratorError("CUDA error: out of memory"), ON_A_CPU],
)
def test_other_checkpoints_make_room_for_one_that_does_not_fit(calls, full_device, tmp_path, error):
    capture = next(call for call in calls if isinstance(call, CaptureCall))
    sweep = next(call for call in calls if isinstance(call, SubstituteCall))
    other = replace(capture, base=replace(capture.base, fingerprint="other"))
    tried = full_device(2, error)
    worker = Worker(tmp_path, 3)
    assert worker.attempt(other).error is None
    outcome = worker.attempt(sweep)
    assert outcome.error is None
    assert tried == ["base", "base", "tuned", "tuned"]
    assert (outcome.measured["out_of_memory"], outcome.measured["batch_tokens"]) == (1, 1024), (
        "batches are not at fault"
    )
    assert (outcome.measured["loads"], outcome.measured["evictions"]) == (2, 1)


def test_a_model_that_does_not_fit_alone_fails_with_advice_and_may_be_tried_elsewhere(calls, full_device, tmp_path):
    sweep = next(call for call in calls if isinstance(call, SubstituteCall))
    tried = full_device(1)
    outcome = Worker(tmp_path, 3).attempt(sweep)
    assert tried == ["base", "tuned", "tuned"], "once more after all else is unloaded"
    assert outcome.failure == "raised", "another worker may have more memory"
    assert outcome.error == (
        f"checkpoint '{sweep.tuned.source}' does not fit in the memory of cpu in float32 (torch.OutOfMemoryError: CUDA out "
        "of memory); set execution.residency to stream, set the model's dtype to bfloat16, or give a worker more memory, "
        "fewer workers per GPU, or more GPUs (execution.gpus_per_worker)"
    )
    assert "out of memory" in outcome.traceback


def test_it_is_not_loaded_again_for_every_call_but_if_more_memory_is_free(calls, full_device, tmp_path):
    free = 100
    sweeps = [call for call in calls if isinstance(call, SubstituteCall)]
    capture = next(call for call in calls if isinstance(call, CaptureCall))
    tried = full_device(1, free=lambda: free)
    worker = Worker(tmp_path, 3)
    first, again = worker.attempt(sweeps[0]), worker.attempt(sweeps[1])
    assert tried == ["base", "tuned", "tuned"]
    assert (again.error, again.failure) == (first.error, "raised")
    assert worker.attempt(capture).error is None, "its base fits"
    free = 120
    worker.attempt(sweeps[1])
    assert tried == ["base", "tuned", "tuned", "tuned", "tuned"]


def test_a_device_that_fails_while_loading_is_no_reason_to_refuse_the_checkpoint(calls, full_device, tmp_path):
    sweep = next(call for call in calls if isinstance(call, SubstituteCall))
    tried = full_device(0, torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))
    outcome = Worker(tmp_path).attempt(sweep)
    assert tried == ["base"]
    assert (outcome.failure, outcome.error[:18]) == ("lost", "AcceleratorError: ")


def test_another_error_is_not_tried_again(calls, small_device, tmp_path):
    tried = small_device(0, RuntimeError("shapes"))
    call = next(call for call in calls if isinstance(call, SubstituteCall))
    assert Worker(tmp_path).attempt(call).error == "RuntimeError: shapes"
    assert tried == [1024]


def test_budgets_are_a_models_own(calls):
    capture = next(call for call in calls if isinstance(call, CaptureCall))
    sweep = next(call for call in calls if isinstance(call, SubstituteCall))
    budgets = Budgets()
    assert budgets.halve(sweep)
    assert (budgets.of(sweep), budgets.of(capture)) == (512, 512), "of one base"


def test_a_run_goes_on_and_its_log_says_so(
    make_config, tmp_path, small_device, finished, tables_of, same_tables, events_of
):
    small_device(200)
    done = drive(make_config(tmp_path))
    assert done.failed == {}
    (short,) = events_of(done, events.MEMORY_SHORT)
    assert short["call"].startswith("substitute m/first")
    assert (short["out_of_memory"], short["batch_tokens"]) == (3, 128)
    same_tables(tables_of(done), tables_of(finished))


def test_loads_and_evictions_are_counted(calls, tmp_path):
    capture = next(call for call in calls if isinstance(call, CaptureCall))
    sweep = next(call for call in calls if isinstance(call, SubstituteCall))
    worker = Worker(tmp_path)
    told = [worker.attempt(call).measured for call in (capture, sweep, sweep)]
    assert [(each["loads"], each["evictions"]) for each in told] == [(1, 0), (1, 0), (0, 0)]
    assert told[0]["load_seconds"] > 0
    assert told[2]["load_seconds"] == 0


def test_a_cut_call_counts_as_its_pieces():
    tally = Tally()
    tally.take({"event": events.RUN_STARTED, "calls": {"substitute": 2}})
    tally.take({"event": events.CALL_CUT, "call": "substitute a", "calls": ["substitute a 1", "substitute a 2"]})
    assert tally.total == {"substitute": 3}
