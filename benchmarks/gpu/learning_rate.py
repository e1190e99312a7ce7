"""How far the rule of `learning_rate: auto` is off: `lr-find` over methods and steps of several sizes, as a table.

    python benchmarks/gpu/learning_rate.py --rows shared/data/gsm8k/train.jsonl --out rates.json
    python benchmarks/gpu/learning_rate.py --rows ... --model HuggingFaceTB/SmolLM2-1.7B-Instruct --tokens 16000

One budget of tokens for every short run (`--budget`), so that larger steps get fewer of them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder: its `kernels.py` is also a package's name

from luthier.recipe.load import recipe_from_dict  # noqa: E402
from luthier.search.found import Found  # noqa: E402
from luthier.search.lr_find import Budget, find_learning_rate  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="JSON Lines with question and answer")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--methods", nargs="+", default=["lora", "full"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_000, 4_000, 16_000, 64_000])
    parser.add_argument("--budget", type=int, default=1_000_000, help="tokens of a short run")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    results = []
    for method in given.methods:
        for tokens in given.tokens:
            found = find_one(given, method, tokens)
            results.append(found.to_json())
            given.out.write_text(json.dumps(results, indent=1))
            print(line(found), flush=True)
    print("\n| method | tokens a step | steps | rule | best | best / rule | 95% of the gain |")
    print("|---|---|---|---|---|---|---|")
    for item in results:
        low, high = item["choice"]["flat"]
        best = item["choice"]["learning_rate"]
        print(
            f"| {item['method']} | {item['tokens_per_step']:,} | {item['steps']} | {item['rule']:g} | {best:g} "
            f"| {best / item['rule']:.2g} | {low:g} to {high:g} |"
        )


def find_one(given: argparse.Namespace, method: str, tokens: int) -> Found:
    recipe = recipe_from_dict(
        {
            "model": {"name_or_path": given.model},
            "data": {
                "train": [{"path": str(given.rows), "map": {"user": "question", "assistant": "answer"}}],
                "validation": {"fraction": 0.05, "max_rows": 256}, "max_length": 512,
            },
            "method": {"name": method},
            "train": {"tokens_per_step": tokens, "num_train_epochs": 10},
            "output_dir": f"runs/rates/{method}-{tokens}",
        },
        origin="learning_rate.py",
    )  # fmt: skip
    return find_learning_rate(recipe, Budget(steps=max(8, given.budget // tokens), runs=4))


def line(found: Found) -> str:
    losses = "  ".join(f"{item.rate:g}: {item.eval_loss or float('nan'):.4f}" for item in found.outcomes)
    return f"{found.method} {found.tokens_per_step}: start {found.start_loss:.4f}  {losses}  -> {found.verdict}"


if __name__ == "__main__":
    main()
