"""Workers on Ray: one actor per slot, replaced when it dies; calls go to them by name and come back as outcomes.

Ray restarts and retries nothing by itself here: it cannot tell the call that killed a worker from the one queued behind
it, and an actor that is away for a moment would use up its retries. Joining and starting clusters is ray_backend.py's.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysweep.engine.calls import Call, Failure, Outcome
from raysweep.engine.deadline import Deadline
from raysweep.engine.disk import StorageFailedError
from raysweep.engine.dispatch import Node, Slot, room_for
from raysweep.engine.ray_worker import RayWorker
from raysweep.engine.tally import duration
from raysweep.errors import RunError
from raysweep.limits import overrides

if TYPE_CHECKING:
    from raysweep.store.places import Location

_START_SECONDS = 300.0
_LOOK_SECONDS = 5.0  # between looks at whether there is still a node for a worker that is waited for
_STARTS = 3
_REPLACE_SECONDS = 60.0  # a worker that cannot be replaced (its node is gone) is done without
_LEAST_SECONDS = 0.2
_KILL_SECONDS = 60.0  # for a process on the worker's node that kills it
_DEPTH = 2  # the next call lies ready when one ends


class _BrokenGpuError(RunError):
    """A worker is up, and its GPU does not work."""


@dataclass(frozen=True)
class Share:
    """What each worker holds of the cluster."""

    cpus: int
    gpus: float

    @property
    def words(self) -> str:
        """For messages: `1 CPU and 0.5 GPU`."""
        return f"{self.cpus} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


@dataclass
class _Place:
    """A slot, the actor in it, and the calls in flight there, oldest first."""

    name: str
    slot: Slot
    share: Share
    actor: Any = None
    about: Mapping[str, Any] = field(default_factory=dict)
    calls: dict[Any, Call] = field(default_factory=dict)
    limits: dict[Any, Deadline] = field(default_factory=dict)
    head: Any = None  # the call that runs, at the last look, and for how long it had then
    ran: float = 0.0
    started: int = 0

    def count(self, seconds: float) -> None:
        """Count the seconds since the last look to the call that runs."""
        head = next(iter(self.calls), None)
        self.head, self.ran = head, self.ran + seconds if head == self.head else 0.0

    @property
    def left(self) -> float:
        """Seconds until the deadline of the call that ran at the last look; below 0 once it has passed."""
        limit = self.limits.get(self.head)
        return math.inf if limit is None or limit.seconds is None else limit.seconds - self.ran


class RayExecutor:
    """Actors in a cluster that this process has joined.

    With GPUs every worker has its own, and tables are made by one more worker that sees none; without, any worker makes them.
    """

    def __init__(
        self,
        folder: Location,
        workers: int,
        share: Share,
        device: str,
        about: Mapping[str, Any] = {},
        resident: int = 2,
    ) -> None:
        self._folder, self._device, self._resident = folder, device, resident
        slot = Slot(results=not share.gpus, depth=_DEPTH)
        self._places = [_Place(f"raysweep worker {index}", slot, share) for index in range(workers)]
        if share.gpus:
            self._places.append(_Place("raysweep tables", Slot(models=False), Share(0, 0)))
        self.slots: list[Slot] = [place.slot for place in self._places]
        self._returned: list[Outcome] = []
        self._deadline_of: Callable[[Call], Deadline] = lambda call: Deadline()
        self._looked = time.monotonic()
        for place in self._places[:workers]:
            self._create(place)
        try:
            for place in self._places[:workers]:
                self._await(place)
        except BaseException:
            self.close()
            raise
        self.about: Mapping[str, Any] = {
            "executor": "ray",
            "workers": workers,
            "each": share.words,
            "seen": [dict(place.about) for place in self._places[:workers]],
            **about,
        }

    def limit_calls(self, deadline_of: Callable[[Call], Deadline]) -> None:
        """Give up a worker whose call runs longer, as if it had died."""
        self._deadline_of = deadline_of

    def submit(self, index: int, call: Call) -> None:
        """Send a call to the actor in slot `index`, under the call's name, which the dashboard shows.

        An actor that died is replaced first. Where that cannot be, the slot takes no more calls, and this one comes back
        unstarted; raises RunError where no slot is left.
        """
        place = self._places[index]
        if place.actor is None:
            self._create(place)
            try:
                self._await(place, _REPLACE_SECONDS)
            except RunError as error:
                self._retire(index, call, error)
                return
        ref = place.actor.run.options(name=call.name).remote(call)
        place.calls[ref], place.limits[ref] = call, self._deadline_of(call)

    def collect(self) -> list[Outcome]:
        """Wait until some call has ended, or its time is up. Where an actor has died, or is given up: its running call is
        lost, those behind it unstarted."""
        if self._returned:
            returned, self._returned = self._returned, []
            return returned
        places = {ref: place for place in self._places for ref in place.calls}
        ready: list[Any] = []
        while not ready:
            left = min(place.left for place in self._places)
            timeout = min(max(left, _LEAST_SECONDS), _LOOK_SECONDS)
            ready, _ = ray.wait(list(places), num_returns=1, timeout=timeout, fetch_local=False)
            for place in self._overdue():
                return self._give_up(place)
        (ref,) = ready
        place = places[ref]
        try:
            result = ray.get(ref)
        except RayTaskError as error:  # what the worker could not catch itself: a call or a result that cannot be sent
            if isinstance(error.cause, StorageFailedError):
                raise error.cause from error
            words = f"{type(error.cause).__name__}: {error.cause}"
            return [Outcome(place.calls.pop(ref), error=words, traceback=str(error))]
        except RayError:
            return self._bury(place)
        place.limits.pop(ref)
        outcome = _outcome(place.calls.pop(ref), result)
        if (
            outcome.error is not None and outcome.failure == "lost"
        ):  # its CUDA context is dead; the process goes, its GPU is free
            behind = [Outcome(call, error=outcome.error, failure="unstarted") for call in place.calls.values()]
            self._drop(place)
            return [outcome, *behind]
        return [outcome]

    def retire(self, index: int) -> Mapping[str, str]:
        """Close a slot, and return where its latest worker ran. A worker that lives keeps its GPU, so that no other gets it."""
        self.slots[index] = Slot(models=False, results=False)
        place = self._places[index]
        gpu = ", ".join(place.about.get("gpus", ()))
        return {"host": place.about.get("host", ""), "gpu": gpu, "worker": place.name.removeprefix("raysweep ")}

    def close(self) -> None:
        """Kill all actors; what runs in them is dropped."""
        for place in self._places:
            self._drop(place)

    def _overdue(self) -> list[_Place]:
        """Places whose call has run past its deadline and not ended. What passes while this process is stopped does not count."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 2 * _LOOK_SECONDS), now
        for place in self._places:
            place.count(passed)
        late = [place for place in self._places if place.left < 0]
        return [place for place in late if not ray.wait([place.head], timeout=0, fetch_local=False)[0]]

    def _give_up(self, place: _Place) -> list[Outcome]:
        """End an actor whose call has run for too long; the outcomes of its calls."""
        limit, about = place.limits[place.head], place.about
        words = (
            f"the worker (process {about['pid']} on {about['host']}) ran this for {duration(place.ran)} and was "
            "stopped: "
            f"{limit.words}"
        )
        details = {"seconds": round(place.ran, 1), "expected": limit.expected, "deadline": limit.seconds}
        measured = {"given_up": {**details, "pid": about["pid"], "host": about["host"]}}
        lost, *behind = place.calls.values()
        outcomes = [Outcome(lost, error=words, measured=measured, failure="lost")]
        outcomes += [Outcome(call, error=words, failure="unstarted") for call in behind]
        self._drop(place)
        kill_process(about["node"], about["pid"])
        return outcomes

    def _create(self, place: _Place) -> None:
        place.started += 1
        kind = ray.remote(RayWorker).options(
            name=place.name + (f" (start {place.started})" if place.started > 1 else ""),
            num_cpus=place.share.cpus,
            num_gpus=place.share.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            **({"runtime_env": {"env_vars": limits}} if (limits := overrides()) else {}),
        )
        place.actor = kind.remote(
            self._folder, max(1, place.share.cpus), place.share.gpus, self._resident, place.slot.models
        )

    def _retire(self, index: int, call: Call, error: RunError) -> None:
        place = self._places[index]
        if not isinstance(
            error, _BrokenGpuError
        ):  # one that lives keeps its broken GPU, so that no other worker gets it
            self._drop(place)
        self.slots[index] = Slot(models=False, results=False)
        if not any(slot.models == place.slot.models and slot.models | slot.results for slot in self.slots):
            raise error
        self._returned.append(Outcome(call, error=str(error), failure="unstarted"))

    def _await(self, place: _Place, seconds: float = _START_SECONDS) -> None:
        """Wait until the actor is up, once more where it is killed meanwhile; raises RunError where it cannot be had."""
        until, tries = time.monotonic() + seconds, 1
        while True:
            try:
                place.about = ray.get(place.actor.about.remote(), timeout=_LOOK_SECONDS)
                break
            except GetTimeoutError:
                self._check_room(place, until)
            except RayError as error:
                if getattr(error, "actor_init_failed", False):
                    raise RunError(
                        f"a worker could not start on its node ({_last_line(error)}); are the same raysweep, torch and "
                        "Python installed there?"
                    ) from error
                if tries == _STARTS:
                    raise RunError(f"a worker died {tries} times while starting: {_last_line(error)}") from error
                tries += 1
                self._create(place)
        if self._device.startswith("cuda") and place.share.gpus and not place.about["cuda"]:
            raise _BrokenGpuError(
                f"the worker on {place.about['host']} was given GPU {place.about['visible']}, and torch finds no CUDA "
                "device there; install a CUDA build of torch on that node, or set execution.device to cpu"
            )
        if self._device.startswith("cuda") and place.about.get("broken"):
            raise _BrokenGpuError(
                f"the worker on {place.about['host']} was given GPU {place.about['visible']}, and CUDA does not work there "
                f"({place.about['broken']}); check that GPU (nvidia-smi -q, dmesg), and take it out of the cluster"
            )

    def _check_room(self, place: _Place, until: float) -> None:
        """Raise RunError where the living nodes cannot hold the actor that is waited for with the others, or it took too long."""
        share = place.share
        nodes = living_nodes()
        wanted = sum(other.actor is not None and other.share == share for other in self._places)
        if (room := room_for(nodes, share.cpus or 1e-3, share.gpus)) < wanted:
            raise RunError(
                f"a worker of {share.words} has no node left to run on: {len(nodes)} nodes are alive, with room for "
                f"{room}; "
                "restart the cluster and run again, which continues from the committed work"
            )
        if time.monotonic() > until:
            raise RunError(
                f"no worker of {share.words} could be started in time: the cluster has room, but something else uses "
                "it; wait for that to end, or use fewer or smaller workers"
            )

    def _drop(self, place: _Place) -> None:
        if place.actor is not None and ray.is_initialized():
            ray.kill(place.actor, no_restart=True)
        place.actor = None
        place.calls.clear()
        place.limits.clear()

    def _bury(self, place: _Place) -> list[Outcome]:
        """The outcomes of all calls of an actor that is gone; the next call makes a new one."""
        outcomes: list[Outcome] = []
        running = True
        for ref, call in place.calls.items():
            try:
                outcomes.append(_outcome(call, ray.get(ref, timeout=0)))
            except RayError as error:
                words = f"the worker (process {place.about['pid']} on {place.about['host']}) died while running this"
                failure: Failure = "lost" if running else "unstarted"
                outcomes.append(Outcome(call, error=words, traceback=str(error), failure=failure))
                running = False
        self._drop(place)
        return outcomes


def kill_process(node: str, pid: int) -> None:
    """Kill a worker's process on its node: one that is stopped does not hear Ray, and would keep its CPU and GPU."""
    there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    kill = ray.remote(_kill).options(num_cpus=0, max_retries=0, scheduling_strategy=there, name="raysweep kill")
    with contextlib.suppress(RayError):  # its node may be gone as well
        ray.get(kill.remote(pid), timeout=_KILL_SECONDS)


def _kill(pid: int) -> None:
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        name = b"" if Path("/proc/self").exists() else b"ray::"
    if name.startswith(b"ray::"):  # not another's that has its number now
        os.kill(pid, signal.SIGKILL)


def living_nodes() -> list[Node]:
    """The nodes of the cluster that are alive, with all that they have."""
    return [Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in living_resources()]


def living_resources() -> list[Mapping[str, float]]:
    """All that each node of the cluster that is alive has, by Ray's names."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _outcome(call: Call, result: Any) -> Outcome:
    commits, measured, error, traceback, failure = result
    return Outcome(call, commits, measured, error, traceback, failure)


def _last_line(error: BaseException) -> str:
    """Where Ray tells of an exception, it ends with the exception itself."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
