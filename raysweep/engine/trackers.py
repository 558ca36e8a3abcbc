"""Runs logged to TensorBoard, MLflow or Weights & Biases, when asked, by accelerate's own trackers.

`Trackers` listens to a run's events: how it goes is logged as it goes, what it found when it ends. Each start of a run is a run
of the tracker's own. Nothing leaves the machine unless the tracker's own variables in the environment say where to
(MLFLOW_TRACKING_URI, WANDB_MODE). A tracker that fails is told of once and left alone; the run goes on.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysweep.engine import events
from raysweep.engine.events import Listener
from raysweep.engine.tally import Tally, kind_of
from raysweep.engine.tracked import Scalars, result_scalars, training_keys, training_scalars
from raysweep.errors import InputError
from raysweep.redaction import redacted

if TYPE_CHECKING:
    from raysweep.engine.folder import RunFolder
    from raysweep.engine.graph import Task
    from raysweep.store.places import Location

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
_REMOTE = {"mlflow": "MLFLOW_TRACKING_URI", "wandb": "WANDB_MODE"}  # where these are set the user says where to log
_QUIET = {  # what they send, and what MLflow prints when it makes a database
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "WANDB_ERROR_REPORTING": "false",
}
FOLDER = "trackers"


def check_trackers(names: Sequence[str], root: Location) -> None:
    """Raise InputError where a tracker's package is missing, or it would need a folder and `root` is in an object store."""
    for name in names:
        package = PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            raise InputError(
                f"execution.report_to has {name}, which needs the package {package}, which is not installed; install "
                "it (pip install 'raysweep[trackers]'), or remove it"
            )
        if not isinstance(root, Path) and _REMOTE.get(name, "") not in os.environ:
            where = f", or set {_REMOTE[name]}" if name in _REMOTE else ""
            raise InputError(
                f"execution.report_to has {name}, which logs to a folder, and storage is {root}; give a folder as storage{where}, "
                f"or remove {name}"
            )


def trackers_for(names: Sequence[str], run: str, folder: RunFolder, listener: Listener | None) -> Trackers | None:
    """What logs a run to these trackers; None for no tracker. `listener` is told of one that fails."""

    def failed(name: str, error: Exception) -> None:
        if listener:
            words = f"{type(error).__name__}: {error}"
            listener({"event": events.TRACKER_FAILED, **redacted({"tracker": name, "error": words})})

    return Trackers(names, run, folder, failed) if names else None


class Trackers:
    """Logs a run to trackers from its events, until it is closed.

    Progress is counted in calls that have ended. `failed` is told the name of a tracker, and what it raised; it is used no more.
    """

    def __init__(
        self, names: Sequence[str], run: str, folder: RunFolder, failed: Callable[[str, Exception], None]
    ) -> None:
        self._names, self._run, self._folder, self._failed = names, run, folder, failed
        self._tally = Tally()
        self._ended = self._committed = 0
        self._tokens: dict[str, int] = {}
        self._trackers: dict[str, Any] = {}
        self._trainings: dict[str, Task] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event of the run."""
        name = event["event"]
        self._tally.take(event)
        if name == events.RUN_STARTED:
            self._start(event)
        elif not self._trackers:
            return
        elif name == events.CHUNK_COMMITTED:
            self._committed += 1
            self._log_each(lambda: training_scalars(self._folder.chunks, self._trainings, event["keys"]))
        elif name in (events.CALL_DONE, events.CALL_RETRIED, events.CALL_FAILED):
            self._ended += 1
            if name == events.CALL_DONE:
                kind, tokens = kind_of(event["call"]), int(event["measured"].get("tokens", 0))
                self._tokens[kind] = self._tokens.get(kind, 0) + tokens
            self._log("progress", self._ended, self._progress())
        elif name == events.RUN_FINISHED:
            self._log(
                "progress", self._ended, {"run/seconds": event["seconds"], "run/tasks_failed": len(event["failed"])}
            )
            self._log_each(lambda: result_scalars(self._folder, self._folder.read_plan()[0]))

    def close(self) -> None:
        """End each tracker's run, however this one ended."""
        self._each(lambda tracker: tracker.finish())
        self._trackers.clear()

    def _start(self, event: dict[str, Any]) -> None:
        self._trainings = training_keys(self._folder.read_plan()[0])
        begun = str(event["time"])[:19].replace(":", "-")
        about = {"run": self._run, "tasks": event["tasks"], "done": event["done"], "host": event["host"]}
        for name in self._names:
            try:
                with _state():
                    tracker = _tracker(name, self._run, begun, self._folder.root)
                    # accelerate would ask which of many processes this is: a driver is but one
                    tracker.main_process_only = False
                    tracker.start()
                    self._trackers[name] = tracker
                    _define_axes(name, tracker)
                    if name != "tensorboard":  # it writes such values as a run of their own
                        tracker.store_init_configuration(about)
            except Exception as error:  # whatever a tracker raises is no reason to end a run
                self._give_up(name, error)

    def _progress(self) -> dict[str, float]:
        tally = self._tally
        values: dict[str, float] = {
            "progress/commits": self._committed,
            "progress/calls_failed": tally.failed,
            "progress/calls_retried": tally.retried,
        }
        for kind, total in tally.total.items():
            seconds = tally.seconds.get(kind, 0.0)
            values |= {f"progress/{kind}/done": tally.done.get(kind, 0), f"progress/{kind}/of": total}
            values[f"progress/{kind}/seconds"] = seconds
            if seconds and self._tokens.get(kind):
                values[f"progress/{kind}/tokens_per_second"] = self._tokens[kind] / seconds
        if (left := tally.left()) is not None:
            values["progress/seconds_left"] = left
        return values

    def _log_each(self, found: Callable[[], Iterator[Scalars]]) -> None:
        """Log each of what `found` gives."""
        try:
            for axis, place, values in found():
                self._log(axis, place, values)
        except Exception as error:  # what is logged beside the results is no reason to lose them
            for name in list(self._trackers):
                self._give_up(name, error)

    def _log(self, axis: str, place: int, values: dict[str, float]) -> None:
        """Log values at a place on an axis; Weights & Biases, whose own steps only go up, gets the place as a value, too."""

        def log(tracker: Any) -> None:
            if tracker.name == "wandb":
                tracker.log({**values, f"{axis}_at": place})
            else:
                tracker.log(values, step=place)

        self._each(log)

    def _each(self, act: Callable[[Any], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                with _state():
                    act(tracker)
            except Exception as error:  # as above
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        self._trackers.pop(name, None)
        self._failed(name, error)


AXES = {
    "progress": ("progress/*", "run/*"),
    "training": ("training/*",),
    "window": ("window/*",),
    "result": ("result/*",),
}


def _define_axes(name: str, tracker: Any) -> None:
    if name == "wandb":
        for axis, globs in AXES.items():
            tracker.tracker.define_metric(f"{axis}_at", hidden=True)
            for glob in globs:
                tracker.tracker.define_metric(glob, step_metric=f"{axis}_at")


def _tracker(name: str, run: str, begun: str, root: Location) -> Any:
    """accelerate's tracker of that name, not started. Logs lie in the run folder, unless the environment says where."""
    from accelerate import tracking

    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    folder = root / FOLDER / name if isinstance(root, Path) else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if name == "tensorboard":
        return tracking.TensorBoardTracker(begun, str(folder))
    if name == "mlflow":
        local = "MLFLOW_TRACKING_URI" not in os.environ
        if local:
            import mlflow

            mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        artifacts = folder.as_uri() if local and folder is not None else None
        return tracking.MLflowTracker(run, artifacts, run_name=begun)
    # it would write beside the progress, and keep a copy of all that is written
    options: dict[str, Any] = {"name": begun, "settings": {"silent": True, "console": "off"}}
    if "WANDB_MODE" not in os.environ:
        options["mode"] = "offline"
    if folder is not None:
        options["dir"] = str(folder)
    return tracking.WandBTracker(run, **options)


@contextmanager
def _state() -> Iterator[None]:
    """accelerate's state, without which its trackers do not log: what there is, or one of the CPU that is taken back afterwards.

    A training in this process makes its own, which must not find this one.
    """
    from accelerate.state import PartialState

    if PartialState._shared_state:
        yield
        return
    PartialState(cpu=True)
    try:
        yield
    finally:
        PartialState._reset_state()
