"""Being a Ray job: a driver that the cluster started. It computes nothing itself, so it sees no GPU and must hold none."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ray.experimental.internal_kv import _internal_kv_get

from raysweep.errors import InputError

_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray calls it


def in_job() -> bool:
    """Whether this process is the driver of a job that was submitted to a cluster."""
    return _CONFIG in os.environ


def hide_gpus() -> None:
    """Let this process see no GPU, whatever its node has; before torch is used."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def enter_job(storage: str, spill: str | None = None) -> None:
    """Hide GPUs from this driver. Raises InputError for a storage, or a folder for states, that would go with the job's own folder."""
    hide_gpus()
    if "://" not in storage and not Path(storage).expanduser().is_absolute():
        raise InputError(
            f"storage '{storage}' is relative, and a job runs in its own folder, which is deleted with it; give an "
            "absolute folder that every node sees (--set storage=/shared/run), or a URL"
        )
    if spill is not None and not Path(spill).expanduser().is_absolute():
        raise InputError(
            f"execution.spill '{spill}' is relative, and a job runs in its own folder, which may be on a disk without room; "
            "give an absolute folder, which each worker has on its own disk (--set execution.spill=/scratch)"
        )


def refuse_held_gpus() -> None:
    """Raise InputError where the job's entry point was given GPUs, which no worker could have then; joined already."""
    submission = json.loads(os.environ[_CONFIG]).get("metadata", {}).get("job_submission_id", "")
    found = _internal_kv_get(f"_ray_internal_job_info_{submission}".encode(), namespace=b"job")
    gpus = json.loads(found).get("entrypoint_num_gpus") if found else None
    if gpus:
        raise InputError(
            f"the entry point of this job holds {gpus:g} GPU{'s' * (gpus != 1)}, which it does not use and no worker can then use; "
            "submit it without --entrypoint-num-gpus"
        )
