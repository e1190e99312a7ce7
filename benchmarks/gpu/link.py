"""Bus bandwidth of all processes' GPUs (all-reduce of 512 MiB), before anything else is measured on a box.

torchrun --standalone --nproc_per_node 4 benchmarks/gpu/link.py
"""

from __future__ import annotations

import json
import os
import time


def main() -> None:
    import torch
    import torch.distributed as dist

    local, world = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(local)
    dist.init_process_group("nccl", device_id=torch.device("cuda", local))
    numbers = torch.ones(1 << 28, dtype=torch.bfloat16, device="cuda")
    for _ in range(3):
        dist.all_reduce(numbers)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        dist.all_reduce(numbers)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / 10
    rate = 2 * (world - 1) / world * numbers.nbytes / seconds / 1e9
    if local == 0:
        peers = [torch.cuda.can_device_access_peer(0, other) for other in range(1, world)]
        print(
            "RESULT " + json.dumps({"bus_gb_s": round(rate, 1), "peers": peers, "nccl": str(torch.cuda.nccl.version())})
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
