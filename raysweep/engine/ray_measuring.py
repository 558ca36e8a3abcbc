"""Measure on a Ray cluster: one short task for each type of GPU, with what a worker reserves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from raysweep.engine.dispatch import Node, room_for
from raysweep.engine.measuring import SECONDS, Measured, last_line, run_as_worker
from raysweep.engine.ray_executor import Share, living_resources
from raysweep.limits import overrides

T = TypeVar("T")

_MOST_TYPES = 4
_TYPE = "accelerator_type:"  # the resource by which Ray names a node's GPUs


def measure_on_nodes(
    share: Share, function: Callable[..., T], *arguments: Any, seconds: float = SECONDS
) -> Measured[T]:
    """Run the function in a task for each of the cluster's `gpu_types`, wherever a worker could start now.

    Types that give no result within so many seconds are left out. Each task has a process of its own, which ends with it.
    """
    limits = overrides()
    task = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=0, max_calls=1)(run_as_worker)
    how: dict[str, Any] = {"name": "measure a worker"} | ({"runtime_env": {"env_vars": limits}} if limits else {})
    asked = [
        task.options(**how, **({} if gpu_type is None else {"accelerator_type": gpu_type})).remote(
            share.gpus, function, *arguments
        )
        for gpu_type in gpu_types(living_resources(), share)
    ]
    ready, late = ray.wait(asked, num_returns=len(asked), timeout=seconds) if asked else ([], [])
    for ref in late:
        ray.cancel(ref, force=True)
    values: list[T] = []
    why = f"no worker of {share.words} was free on the cluster within {seconds:.0f} s"
    for ref in ready:
        try:
            values.append(ray.get(ref))
        except RayError as error:
            why = f"measuring failed on a node of the cluster ({last_line(str(error))})"
    if not values:
        return Measured((), "the cluster", why)
    n = len(values)
    where = (
        "a node of the cluster" if n == 1 else f"nodes of the cluster with {n} types of GPU, the slowest of each rate"
    )
    return Measured(tuple(values), where)


def gpu_types(nodes: Sequence[Mapping[str, float]], share: Share) -> list[str | None]:
    """Return the types of GPU, as Ray names them, on the nodes that hold a worker: at most four, those with most GPUs.

    `nodes` are the nodes' resources. None is the type of all GPUs that Ray does not name.
    """
    found: Counter[str | None] = Counter()
    for has in nodes:
        node = Node(has.get("CPU", 0.0), has.get("GPU", 0.0))
        if node.gpus and room_for([node], share.cpus, share.gpus):
            gpu_type = next((name.removeprefix(_TYPE) for name in has if name.startswith(_TYPE)), None)
            found[gpu_type] += int(node.gpus)
    return [gpu_type for gpu_type, _ in found.most_common(_MOST_TYPES)]
