#!/usr/bin/env bash
# fp32, 6 steps over 13 documents: DeepSpeed's ZeRO-2 and ZeRO-3 on N processes against one process.
#   deepspeed_check.sh N [flags of distributed_rank.py, for instance --device cpu --model tiny --max-doc 64]
set -euo pipefail
folder=$(mktemp -d)
rank=benchmarks/gpu/distributed_rank.py
processes=$1
shift
words=(--check "$folder" --model smol135m --layers 6 --max-doc 512 "$@")
${PYTHON:-python3} $rank "${words[@]}" | grep -v RESULT || true
${PYTHON:-python3} -m torch.distributed.run --standalone --nproc_per_node "$processes" \
    $rank --check-strategies zero2,zero3 "${words[@]}" | grep -v RESULT || true
${PYTHON:-python3} - "$folder" "$processes" <<'P'
import json, sys
from pathlib import Path
import torch
found = {}
for method in ("lora", "full", "freeze"):
    for strategy in ("zero2", "zero3"):
        a, b = (torch.load(Path(sys.argv[1]) / f"{method}-{kind}.pt") for kind in ("ddp-1", f"{strategy}-{sys.argv[2]}"))
        assert set(a["weights"]) == set(b["weights"])
        loss = max(abs(x - y) for x, y in zip(a["losses"], b["losses"], strict=True))
        far = max(float((a["weights"][k].double() - b["weights"][k].double()).abs().max()) for k in a["weights"])
        found[f"{method} {strategy}"] = {"loss": loss, "weight": far}
print("RESULT " + json.dumps({"DeepSpeed against one process": found}))
P
