"""`raysweep critical` by one worker of the cluster that this job was submitted to: with a GPU where the cluster has any.

ray job submit --working-dir . -- python jobs/critical.py MODEL DATA… [--top K] [--json] …

The entry point holds no GPU and computes nothing; exit codes are the command line's.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys

from raysweep import signals
from raysweep.engine.ray_token import use_token
from raysweep.errors import InputError


def run_command(arguments: list[str], sees_gpus: bool) -> tuple[int, str, str]:
    """`raysweep …` in this process, which is a worker's: exit code, and what it said on standard output and error."""
    if not sees_gpus:  # it would inherit all of its node's
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        from raysweep.cli import main

        sys.argv = ["raysweep", *arguments]
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return code, out.getvalue(), err.getvalue()


def job(arguments: list[str]) -> int:
    """Join, have one worker run the command, say what it said; the exit code."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    use_token(starting=False)  # before ray is imported
    import ray

    from raysweep.engine.ray_jobs import in_job, refuse_held_gpus

    ray.init(log_to_driver=False, logging_level=logging.ERROR)  # RAY_ADDRESS is set in a job
    signals.renew()
    try:
        if in_job():
            refuse_held_gpus()
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        task = ray.remote(run_command).options(name="raysweep critical", num_cpus=1, num_gpus=gpus, max_retries=0)
        code, out, err = ray.get(task.remote(["critical", *arguments], gpus > 0))
    except InputError as error:
        code, out, err = 2, "", f"error: {error}\n"
    except ray.exceptions.RayError as error:
        code, out, err = 1, "", f"error: the worker died: {error}\n"
    except KeyboardInterrupt as error:  # the worker ends with this process's connection
        number = signals.number_of(error) or 0
        code, out, err = 128 + number, "", f"{signals.what_happened(number)}; nothing was written\n"
        ray.shutdown()
    sys.stderr.write(err)
    sys.stdout.write(out)
    return code


if __name__ == "__main__":
    with signals.handled(program=True):
        sys.exit(job(sys.argv[1:]))
