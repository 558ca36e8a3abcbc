"""`raysweep run` on the cluster that this job was submitted to; exit codes are the command line's.

ray job submit --working-dir . -- python jobs/sweep.py CONFIG --set storage=/shared/run [--set …] [--fresh] [--verify N]
"""

from __future__ import annotations

import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # workers have the GPUs; what is made here needs none

from raysweep.cli import main

if __name__ == "__main__":
    sys.argv = ["raysweep", "run", *sys.argv[1:], "--executor", "ray"]
    main()
