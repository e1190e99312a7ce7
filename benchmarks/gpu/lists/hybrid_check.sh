#!/usr/bin/env bash
# fp32, 6 steps over 13 documents: N processes as two copies of N/2 shards (HSDP), and as N shards, against one process
# that runs the same separate products; and a checkpoint of the copies, read back bit for bit.
#   hybrid_check.sh N [flags of distributed_rank.py, for instance --device cpu --model tiny --max-doc 64]
set -euo pipefail
folder=$(mktemp -d)
rank=benchmarks/gpu/distributed_rank.py
processes=$1
shift
words=(--check "$folder" --model smol135m --layers 6 --max-doc 512 "$@")
many=(${PYTHON:-python3} -m torch.distributed.run --standalone --nproc_per_node "$processes" $rank --strategy fsdp2)
${PYTHON:-python3} $rank --separate "${words[@]}" | grep -v RESULT || true
"${many[@]}" --check-strategies fsdp2 "${words[@]}" | grep -v RESULT || true
"${many[@]}" --check-strategies fsdp2 --copies 2 --save "$folder/saved" "${words[@]}" | grep RESULT > "$folder/copies" || true
${PYTHON:-python3} - "$folder" "$processes" <<'P'
import json, sys
from pathlib import Path
import torch
folder, processes = Path(sys.argv[1]), sys.argv[2]
told = json.loads((folder / "copies").read_text().splitlines()[-1].split("RESULT ", 1)[1])
cases = told.get("cases", {})
found = {"error": told["error"]} if "error" in told else {}
for method in (name.split()[0] for name in cases):
    alone = torch.load(folder / f"{method}-separate-1.pt")
    for kind in (f"fsdp2-{processes}", f"fsdp2-{processes}-r2"):
        other = torch.load(folder / f"{method}-{kind}.pt")
        assert set(alone["weights"]) == set(other["weights"])
        loss = max(abs(x - y) for x, y in zip(alone["losses"], other["losses"], strict=True))
        far = max(float((alone["weights"][k].double() - other["weights"][k].double()).abs().max()) for k in alone["weights"])
        found[f"{method} {kind}"] = {"loss": loss, "weight": far}
    case = cases[f"{method} fsdp2"]
    found[f"{method} fsdp2-{processes}-r2"] |= {key: case.get(key) for key in ("mesh", "placements", "restored_bit_for_bit")}
print("RESULT " + json.dumps({"copies of shards against one process": found}))
P
