"""The worker as a Ray actor: the same worker as in one process, with its device seen to before anything is loaded."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray

from raysweep.collector import collection_paused
from raysweep.engine.measuring import keep_to_share

if TYPE_CHECKING:
    from raysweep.engine.calls import Call, Commit, Failure
    from raysweep.store.places import Location

# What comes back of a call; the call itself stays with the driver.
Result = tuple[tuple["Commit", ...], Mapping[str, Any], str | None, str | None, "Failure"]


class RayWorker:
    """Runs calls one after the other, with the checkpoints it used last resident; without `models`, calls that load none.

    With a fraction of a GPU as `gpus`, it may use that share of the GPU's memory.
    """

    def __init__(self, folder: Location, cpus: int, gpus: float, resident: int = 2, models: bool = True) -> None:
        if not gpus:  # a worker without GPUs would inherit all of its node's
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        with collection_paused():
            import torch

            if models:  # seconds, which the first call would take
                import transformers.modeling_utils
                import transformers.models.auto.modeling_auto  # noqa: F401

            from raysweep.engine.device_failure import probe
            from raysweep.engine.work import Worker

        torch.set_num_threads(cpus)
        keep_to_share(gpus)
        self._worker = Worker(folder, resident)
        self._broken = probe("cuda") if gpus else ""

    def about(self) -> dict[str, Any]:
        """Where this worker runs, and what it sees there."""
        import torch

        return {
            "pid": os.getpid(),
            "node": ray.get_runtime_context().get_node_id(),
            "host": socket.gethostname(),
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            "gpus": [str(gpu) for gpu in ray.get_gpu_ids()],
            "cuda": torch.cuda.is_available(),
            "broken": self._broken,  # why CUDA does not work here
            "threads": torch.get_num_threads(),
        }

    def run(self, call: Call) -> Result:
        """Run a call; what it raises comes back as words.

        After a call that is `lost` the driver ends this process. Until then nothing else runs in it.
        """
        outcome = self._worker.attempt(call)
        where = {"visible_gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""), "worker": _own_name(), "pid": os.getpid()}
        measured = {**outcome.measured, **where}
        return outcome.commits, measured, outcome.error, outcome.traceback, outcome.failure


def _own_name() -> str:
    """The name of this actor's place, such as `worker 3`: that of the one it may have replaced, too."""
    return (ray.get_runtime_context().get_actor_name() or "").removeprefix("raysweep ").partition(" (")[0]
