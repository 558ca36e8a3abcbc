"""One training over many processes of a cluster: Ray Train starts them, joins them to a group, and tells when one dies.

What each process does is studies/finetune.py's, as in one process. What it needs travels with it, but for the base, which
every node reads where it lies; what comes of it is written by the first process to the training's folder, which all nodes
share. Nothing is tried again here: called again, a training goes on from its last whole checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ray

from raysweep.collector import collection_paused
from raysweep.engine.dispatch import room_for
from raysweep.engine.ray_executor import living_nodes
from raysweep.errors import RaysweepError, RunError, shortened
from raysweep.limits import overrides
from raysweep.models.machine_errors import is_out_of_memory
from raysweep.store.artifacts import publish_json
from raysweep.store.scratch import scratch_folder
from raysweep.store.whole_folder import publish_folder
from raysweep.studies.training import Course, Progress, Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from raysweep.data.examples import Example
    from raysweep.models.checkpoint import Checkpoint

FINAL = "final"
_RAY, _DONE, _PROGRESS = "ray", "trained.json", "progress.jsonl"
_LOOK_SECONDS = 0.2
_TIMEOUT_SECONDS = 7200  # of one exchange between processes; loading and writing a large model takes long


def train_on_ray(
    base: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Example],
    test: Sequence[Example],
    recipe: Recipe,
    folder: Path,
    *,
    processes: int,
    strategy: Literal["ddp", "fsdp"] = "fsdp",
    device: str = "cpu",
    cpus: int = 1,
    tell: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> Course:
    """Fine-tune on the cluster that this process has joined, in so many processes of a GPU each (`device` cuda) or of `cpus`.

    Everything else is as in `finetune`, in one process of which with `processes` times the batch the losses are the same.
    `folder` is one that every node reaches; the model comes into FINAL below it, as `save_tuned` writes it. Interrupted, or
    once `stop` is set, it waits for nothing more, and the processes end with this one's connection to the cluster.

    Raises what `finetune` does, and RunError where the cluster has no room, a process dies, or it is stopped; called again,
    it resumes.
    """
    from ray.train.torch import TorchConfig
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.torch.torch_trainer import TorchTrainer

    os.environ.setdefault(
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"
    )  # one more process, to tell of what is resumed anyway
    gpus = 1 if device.startswith("cuda") else 0
    _check_room(processes, cpus, gpus)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for stale in (_DONE, _PROGRESS):
        (folder / stale).unlink(missing_ok=True)
    shutil.rmtree(folder / _RAY, ignore_errors=True)
    given = {
        "base": replace(base, folder=base.folder.absolute()),
        "tokenizer": tokenizer,
        "train": train,
        "test": test,
        "recipe": recipe,
        "folder": folder,
        "strategy": strategy,
        "device": "cuda" if gpus else "cpu",
    }
    trainer = TorchTrainer(
        _work,
        train_loop_config={"given": ray.put(given), "cpus": cpus, "limits": overrides()},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=_TIMEOUT_SECONDS),
        scaling_config=ScalingConfig(
            num_workers=processes,
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpus else {})},
        ),
        run_config=RunConfig(
            name=_RAY,
            storage_path=str(folder),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        _fit(trainer, folder / _PROGRESS, tell, stop or threading.Event())
    finally:
        shutil.rmtree(folder / _RAY, ignore_errors=True)
    return _read(folder)


def _check_room(processes: int, cpus: int, gpus: int) -> None:
    nodes = living_nodes()
    if (room := room_for(nodes, cpus, gpus)) < processes:
        each = f"{cpus} CPU" + (" and 1 GPU" if gpus else "")
        raise RunError(
            f"a training needs {processes} processes of {each} each, and the cluster's {len(nodes)} nodes have room for "
            f"{room}; use fewer processes, or add nodes and run again"
        )


def _fit(trainer: Any, progress: Path, tell: Callable[[Progress], None] | None, stop: threading.Event) -> None:
    """Run it in a thread, for Ray Train would keep Ctrl-C to itself; tell of progress meanwhile."""
    from ray.train.v2.api.exceptions import TrainingFailedError

    raised: list[BaseException] = []

    def fit() -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Ray's, of what is its own to change
                trainer.fit()
        except BaseException as error:  # raised again where it is waited for
            raised.append(error)

    thread = threading.Thread(target=fit, name="ray train", daemon=True)
    thread.start()
    seen = 0
    while thread.is_alive():
        thread.join(_LOOK_SECONDS)
        seen = _tell(progress, seen, tell)
        if stop.is_set():
            raise RunError("the training was stopped; run again, and it continues from its last complete checkpoint")
    if raised and isinstance(raised[0], TrainingFailedError):
        failed = _in_words(raised[0])
        raise failed from failed.__cause__ or raised[0]
    if raised:
        raise raised[0]


def _tell(progress: Path, seen: int, tell: Callable[[Progress], None] | None) -> int:
    """Tell of the lines from `seen` on; how many there are. The last may be half written."""
    if tell is None or not progress.is_file():
        return seen
    lines = progress.read_text(encoding="utf-8").split("\n")[:-1]
    for line in lines[seen:]:
        tell(Progress(**json.loads(line)))
    return len(lines)


def _in_words(error: Any) -> RaysweepError:
    """Why a training failed. Where one process has a reason of its own, the others fail with it, their connections lost."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    causes = {rank: getattr(failure, "_base_exc", failure) for rank, failure in sorted(failures.items())}
    for cause in causes.values():
        if isinstance(cause, RaysweepError):
            return cause
    for rank, cause in causes.items():
        if is_out_of_memory(cause):
            short = RunError(f"process {rank}: {_first(cause)}")
            short.__cause__ = cause
            return short
    for rank, cause in causes.items():
        if hasattr(cause, "health_check_failure"):
            told = _first(cause.health_check_failure)
            return RunError(
                f"process {rank} of the training died ({told}); run again, and it continues from its last complete "
                "checkpoint"
            )
    for rank, cause in causes.items():
        return RunError(f"process {rank} of the training failed: {_first(cause)}")
    return RunError(f"Ray Train could not run the training: {_first(getattr(error, 'controller_failure', error))}")


def _first(error: BaseException) -> str:
    return shortened(" ".join(f"{type(error).__name__}: {error}".split()), 400)


def _work(config: Mapping[str, Any]) -> None:
    """One process of the training; it is in a group of all of them."""
    os.environ.update(config["limits"])
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import torch

    given = ray.get(config["given"])
    if given["device"] == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        torch.set_num_threads(config["cpus"])
    else:
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    with collection_paused():
        import transformers.trainer  # noqa: F401

        from raysweep.studies.finetune import finetune, save_tuned

    folder, first = given["folder"], torch.distributed.get_rank() == 0
    progress = folder / _PROGRESS

    def tell(now: Progress) -> None:
        with progress.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(now)) + "\n")

    tuned = finetune(**given, tell=tell)
    if first:
        part, final = folder / f"{FINAL}.part", folder / FINAL
        shutil.rmtree(part, ignore_errors=True)
        save_tuned(tuned, given["tokenizer"], part, given["base"])
        with scratch_folder(folder) as aside:
            publish_folder(part, final, aside=aside)
        publish_json(folder / _DONE, tuned.to_json())
    torch.distributed.barrier()


def _read(folder: Path) -> Course:
    try:
        told = json.loads((folder / _DONE).read_bytes())
    except FileNotFoundError as error:
        raise RunError(
            f"the training ended, but its files are not in {folder}; it must be a folder that every node shares"
        ) from error
    return Course.from_json(told)
