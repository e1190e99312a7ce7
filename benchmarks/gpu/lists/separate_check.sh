#!/usr/bin/env bash
# One GPU, fp32: 6 steps with FSDP2's separate products against the stacked ones (distributed_rank.py --check).
set -euo pipefail
folder=$(mktemp -d)
rank=benchmarks/gpu/distributed_rank.py
${PYTHON:-python3} $rank --check "$folder" --model smol135m --layers 6 --max-doc 512 "$@" | grep -v RESULT || true
${PYTHON:-python3} $rank --check "$folder" --model smol135m --layers 6 --max-doc 512 --separate "$@" | grep -v RESULT || true
${PYTHON:-python3} - "$folder" <<'P'
import json, sys
from pathlib import Path
import torch
found = {}
for method in ("lora", "full", "freeze"):
    a, b = (torch.load(Path(sys.argv[1]) / f"{method}-{kind}-1.pt") for kind in ("ddp", "separate"))
    loss = max(abs(x - y) for x, y in zip(a["losses"], b["losses"], strict=True))
    far = max(float((a["weights"][k].double() - b["weights"][k].double()).abs().max()) for k in a["weights"])
    found[method] = {"loss": loss, "weight": far}
print("RESULT " + json.dumps({"separate against stacked": found}))
P
