"""Trainings of several processes each, as many at once as the cluster has room for, as outcomes of their calls."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from raysweep.engine.calls import BackdoorCall, Commit, Outcome, TrainCall
from raysweep.engine.dispatch import room_for
from raysweep.engine.folder import RunFolder
from raysweep.engine.memory import too_much_to_train
from raysweep.engine.ray_executor import Share, living_nodes
from raysweep.engine.ray_training import FINAL, train_on_ray
from raysweep.engine.training_work import (
    Tell,
    alone_in,
    answered,
    counted,
    keep_logs,
    last_test_loss,
    recipe_for,
    telling,
    trained_commits,
)
from raysweep.errors import InputError, RunError
from raysweep.limits import overrides
from raysweep.models.checkpoint import describe
from raysweep.models.loading import load_model, load_tokenizer
from raysweep.models.machine_errors import is_out_of_memory
from raysweep.studies.training import Recipe

if TYPE_CHECKING:
    import pandas as pd

    from raysweep.store.places import Location

_LOOK_SECONDS = 0.5  # between looks at whether an answer is still waited for


def run_trainings(
    folder: Location, calls: Sequence[TrainCall], share: Share, device: str, tell: Tell
) -> Iterator[Outcome]:
    """Run the calls, and give what comes of each as it ends; given up, it waits for none of them."""
    gpus = 1 if device.startswith("cuda") else 0
    room = room_for(living_nodes(), share.cpus, gpus)
    at_once = max(1, room // max(call.processes for call in calls))
    stop = threading.Event()
    with ThreadPoolExecutor(at_once, thread_name_prefix="raysweep training") as pool:
        started = [pool.submit(_attempt, folder, call, share.cpus, device, tell, stop) for call in calls]
        try:
            for ended in as_completed(started):
                yield ended.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _answer(device: str, cpus: int) -> Any:
    """What answers with a model that was trained, on a device of the cluster."""

    def answer(call: BackdoorCall, recipe: Recipe, rows: pd.DataFrame, final: Path) -> list[Commit]:
        model = load_model(describe(str(final)), dtype=recipe.dtype, device=call.loading.device)
        return [answered(call, recipe, rows, model, last_test_loss(rows))]

    remote = ray.remote(num_cpus=cpus, num_gpus=1 if device.startswith("cuda") else 0, max_retries=0)(answer)
    return remote.options(runtime_env={"env_vars": limits}) if (limits := overrides()) else remote


def _awaited(ref: Any, stop: threading.Event) -> Any:
    """What a task gives; one that nobody waits for any more is cancelled."""
    while not ray.wait([ref], timeout=_LOOK_SECONDS)[0]:
        if stop.is_set():
            ray.cancel(ref, force=True)
            raise RunError("the run ended before the answers arrived; run again")
    return ray.get(ref)


def _attempt(folder: Location, call: TrainCall, cpus: int, device: str, tell: Tell, stop: threading.Event) -> Outcome:
    """Run one; whatever it raises becomes an outcome with the traceback."""
    run, began = RunFolder(folder), time.monotonic()
    try:
        recipe = recipe_for(call, run)
        work = run.training(call.key)
        with alone_in(work):
            course = train_on_ray(
                call.base,
                load_tokenizer(call.base),
                call.examples,
                call.test,
                recipe,
                work,
                processes=call.processes,
                strategy=call.strategy,
                device=device,
                cpus=cpus,
                tell=telling(call, run, tell),
                stop=stop,
            )
        keep_logs(call, run)
        if isinstance(call, BackdoorCall):
            commits = _awaited(_answer(device, cpus).remote(call, recipe, course.rows, work / FINAL), stop)
        else:
            commits = trained_commits(call, run, recipe, course.rows)
    except Exception as error:
        # the death of a process is neither, and is tried again
        refused, short = isinstance(error, InputError), isinstance(error, RunError) and is_out_of_memory(error)
        words = too_much_to_train(call, error) if short else str(error)
        return Outcome(
            call,
            error=words if refused or short else f"{type(error).__name__}: {error}",
            traceback=traceback.format_exc(),
            failure="refused" if refused or short else "raised",
        )
    seconds = round(time.monotonic() - began, 4)
    did = counted(call, recipe, course.rows, course.steps, course.resumed_from)
    return Outcome(call, tuple(commits), {**did, "seconds": seconds})
