"""Run a script written for one GPU as one of several processes: each sees its own GPU as device 0.

torchrun --nproc_per_node 2 benchmarks/gpu/one_gpu_each.py SCRIPT FLAGS...
"""

from __future__ import annotations

import os
import runpy
import sys

local = os.environ.get("LOCAL_RANK", "0")
seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
if int(local) < len(seen) and seen[0]:
    os.environ["CUDA_VISIBLE_DEVICES"] = seen[int(local)]
    os.environ["LOCAL_RANK"] = "0"
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
