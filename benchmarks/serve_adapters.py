"""What rows with different adapters cost a step of decoding: Luthier's products side by side, PEFT's mixed batch.

    OMP_NUM_THREADS=1 python benchmarks/serve_adapters.py [--rows 8] [--adapters 1 4 8] [--rank 16]

SmolLM2-135M-Instruct, random adapters on all linear layers, rows dealt to the adapters in turn. One step is a
forward of one token a row without a cache, so that only the layers differ. Ways take turns; the median of the
processor time (all threads) is printed, which moves less than wall time on a machine that others use.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from luthier.model.load import load_base
from luthier.recipe.schema import ModelSection
from luthier.runtime.device import pick_device
from luthier.serve.engine.adapters import AdapterBank, load_adapter


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    section, device = ModelSection(name_or_path="smollm2-135m-instruct"), pick_device()

    def load():
        return load_base(section, device=device, dtype="float32").eval()

    with tempfile.TemporaryDirectory() as root, torch.inference_mode():
        folders = []
        for number in range(max(args.adapters)):
            torch.manual_seed(number)
            config = LoraConfig(r=args.rank, target_modules="all-linear", init_lora_weights=False)
            get_peft_model(load(), config).save_pretrained(Path(root) / str(number))
            folders.append(Path(root) / str(number))
        ours, plain = load(), load()
        bank = AdapterBank(ours)
        adapters = [load_adapter(folder, ours, folder.name) for folder in folders]
        peft = PeftModel.from_pretrained(load(), folders[0], adapter_name="0")
        for number, folder in enumerate(folders[1:], start=1):
            peft.load_adapter(folder, adapter_name=str(number))
        peft.eval()
        ids = torch.arange(args.rows)[:, None] + 100
        print("| adapters | base alone, CPU ms a step | Luthier | PEFT adapter_names | largest logit difference |")
        print("|---|---|---|---|---|")
        for count in args.adapters:
            owners = [row % count for row in range(args.rows)]
            bank.use([adapters[owner] for owner in owners])
            names = [str(owner) for owner in owners]
            ways = {
                "base": lambda: plain(input_ids=ids).logits,
                "ours": lambda: ours(input_ids=ids).logits,
                "peft": lambda names=names: peft(input_ids=ids, adapter_names=names).logits,
            }
            difference = float((ways["ours"]() - ways["peft"]()).abs().max())
            spent: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(args.steps):
                for name, way in ways.items():
                    started = time.process_time()
                    way()
                    spent[name].append((time.process_time() - started) * 1000)
            base, mine, theirs = (statistics.median(spent[name]) for name in ("base", "ours", "peft"))
            print(f"| {count} | {base:.0f} | {mine:.0f} | {theirs:.0f} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
