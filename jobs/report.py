"""`raysweep report` on the node that runs this job's entry point: tables and page of a run folder that it sees, no GPU.

ray job submit --working-dir . -- python jobs/report.py /shared/run
"""

from __future__ import annotations

import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""

from raysweep.cli import main

if __name__ == "__main__":
    sys.argv = ["raysweep", "report", *sys.argv[1:]]
    main()
