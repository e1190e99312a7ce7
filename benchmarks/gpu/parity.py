"""Parity before speed: loss, every gradient, recompute policies and document isolation of the fast engine.

    python benchmarks/gpu/parity.py                             # on CUDA, bf16: all families, 135M, a slice of 8B
    python benchmarks/gpu/parity.py --device cpu                # small models, fp32
    python benchmarks/gpu/parity.py --only qwen3 --verbose

For each family and method one batch of a few documents:

    gradients   relative L2 of every tensor against plain transformers in fp64 (fp32 for the large ones), beside the
                same error of plain transformers in the dtype that is tested: the worse of documents one by one and
                padded to a rectangle, since roundings are a draw. Wanted: at most --limit (bf16: 1e-2), and not above
                1.1 times plain's. A tensor above both is a FAILURE; one above 1.1 times plain's but within
                the limit is listed as `worse`. The error of the whole gradient must be within 1.1 times plain's.
    policies    gradients of `selective` and `layer` against those of `none`, beside two runs of `none` (attention's
                backward adds with atomics on CUDA, so runs differ)
    isolation   one document is replaced: hidden states of all others must be bit-equal; and rows of the embedding
                that only a document without weight uses must have no gradient at all
    fp8         error of the inexact base, reported, never judged

Prints a line a case and `RESULT {json}`; the exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])  # not this folder: its `kernels.py` is also a package's name
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

from benchmarks.gpu.families import FAMILIES, LARGE, Family, documents  # noqa: E402
from benchmarks.gpu.models import random_model  # noqa: E402
from benchmarks.gpu.reference import (  # noqa: E402
    Errors,
    Step,
    compare,
    exact_copy,
    fill_adapters,
    gradients_of,
    padded_step,
    plain_step,
    worse_of,
)  # fmt: skip
from luthier.data.batch import collate  # noqa: E402
from luthier.data.types import Example  # noqa: E402

LIMITS = {"bfloat16": 1e-2, "float32": 2e-5}
FLOORS = {"bfloat16": 0.0, "float32": 1e-5}
"""Errors below this are never `worse`: the order of sums in fp32."""
RATIO = 1.1


class Case:
    """One family with one method."""

    def __init__(self, family: Family, method: str, options: argparse.Namespace) -> None:
        self.family, self.options = family, options
        self.method, _, base = method.partition("-")
        self.frozen_base = base or "as_loaded"
        self.std = family.std[options.dtype]
        self.lines: list[str] = []
        self.failures: list[str] = []
        self.result: dict[str, Any] = {"family": family.name, "method": method}
        self.documents = documents(family.documents, family.settings["vocab_size"], seed=1)

    def build(self) -> Any:
        """The model prepared as a run prepares it; B of the adapters is not zero."""
        from luthier.model.adapters import apply_method
        from luthier.recipe.schema import MethodSection

        options, family = self.options, self.family
        model = random_model(
            family.kind, family.settings, device=options.device, dtype=options.dtype, nf4=self.method == "qlora",
            std=self.std, perturbed=True,
        )  # fmt: skip
        keys: dict[str, Any] = {} if self.method == "full" else {"r": 16, "lora_alpha": 24.0}
        tuned = apply_method(model, MethodSection(name=self.method, **keys), seed=0).model
        fill_adapters(tuned, std=self.std / 2)
        return tuned.train()

    def fast(self, model: Any, **settings: Any) -> tuple[Step, str]:
        """One step of the engine on a copy of the model; and what its report says of the decoder."""
        from luthier.fast.engine import attach
        from luthier.fast.settings import EngineSettings

        twin = copy.deepcopy(model)
        engine = attach(twin, EngineSettings(**{"frozen_base": self.frozen_base, **settings}))
        twin.train()
        batch = collate(self.documents).to(self.options.device)
        sums = engine.loss(batch)
        (sums.loss / batch.weight_sum).backward()
        step = Step(float(sums.loss.detach()) / batch.weight_sum, gradients_of(twin))
        report = "; ".join(f"{part.name}: {part.runs}" for part in engine.report)
        engine.detach()
        return step, report

    def run(self) -> None:
        """All checks of this case."""
        model = self.build()
        exact = plain_step(exact_copy(model, getattr(torch, self.family.reference)), self.documents)
        plain = worse_of(
            compare(plain_step(copy.deepcopy(model), self.documents), exact),
            compare(padded_step(copy.deepcopy(model), self.documents), exact),
        )
        kept, report = self.fast(model, recompute="none")
        self.result["report"] = report
        if self.options.verbose:
            self.lines.append(f"  {report}")
        self._judge(compare(kept, exact), plain)
        self._policies(model, kept)
        if self.method == "full":
            self._isolation(model)
        if self.method == "lora" and self.options.dtype == "bfloat16":
            self._fp8(model, exact)

    def _judge(self, fast: Errors, plain: Errors) -> None:
        limit, floor = self.options.limit, FLOORS[self.options.dtype]
        worse = {n: e for n, e in fast.tensors.items() if e > max(RATIO * plain.tensors[n], floor)}
        above = {n: e for n, e in worse.items() if e > limit}
        also = sum(e > limit for e in fast.tensors.values()) - len(above)
        self.result.update(
            loss=fast.loss, loss_plain=plain.loss, total=fast.total, total_plain=plain.total, worst=fast.worst,
            worst_plain=plain.worst, tensors=len(fast.tensors), worse=len(worse), above=len(above),
        )  # fmt: skip
        name, error = fast.worst
        self.lines.insert(0, (
            f"{self.family.name:16}{self.result['method']:18} loss {fast.loss:.1e} (plain {plain.loss:.1e})  gradient "
            f"{fast.total:.2e} (plain {plain.total:.2e})  worst {error:.1e} {_short(name)} (plain "
            f"{plain.tensors[name]:.1e})  of {len(fast.tensors)}: {len(worse)} worse, {len(above)} fail"
            + (f", {also} above the limit as plain is" if also else "")
        ))  # fmt: skip
        shown = above if above else worse if self.options.verbose else {}
        for bad in sorted(shown, key=lambda n: -shown[n])[: 8 if not self.options.verbose else None]:
            self.lines.append(f"    {bad}: {fast.tensors[bad]:.2e}, plain {plain.tensors[bad]:.2e}")
        if above:
            self.failures.append(f"{len(above)} gradients above {limit:g} and {RATIO} x plain")
        if fast.total > max(RATIO * plain.total, floor):
            self.failures.append(f"whole gradient {fast.total:.2e} above {RATIO} x plain {plain.total:.2e}")

    def _policies(self, model: Any, kept: Step) -> None:
        again, _ = self.fast(model, recompute="none")
        noise = max(compare(again, kept).tensors.values())
        found = {}
        for policy, layers, keep in (("selective", None, False), ("layer", None, False), ("layer", None, True),
                                     ("layer", 1, False)):  # fmt: skip
            step, _ = self.fast(model, recompute=policy, recompute_layers=layers, keep_attention=keep)
            errors = compare(step, kept)
            name = policy + (f" {layers}" if layers else "") + (" but for attention" if keep else "")
            found[name] = max(errors.loss, errors.worst[1])
            if found[name] > max(3 * noise, 1e-6):
                self.failures.append(f"recompute {name} differs by {found[name]:.1e} ({_short(errors.worst[0])})")
        self.result.update(policies=found, noise=noise)
        words = ", ".join(f"{name} {'equal' if error == 0 else f'{error:.1e}'}" for name, error in found.items())
        self.lines.append(
            f"    policies against none: {words}; none again: {'equal' if noise == 0 else f'{noise:.1e}'}"
        )

    def _isolation(self, model: Any) -> None:
        from luthier.fast.engine import attach, inner_model
        from luthier.fast.hidden import model_inputs

        vocab = self.family.settings["vocab_size"]
        twin = copy.deepcopy(model).eval()
        engine = attach(twin)
        worst = 0
        for changed in range(len(self.documents)):
            other = list(self.documents)
            other[changed] = documents(self.family.documents, vocab, seed=99)[changed]
            rows = []
            for docs in (self.documents, other):
                batch = collate(docs).to(self.options.device)
                with torch.no_grad():
                    inputs = model_inputs(batch, engine.layout)
                    hidden = inner_model(twin).get_decoder()(**inputs.kwargs)[0].flatten(0, 1)
                    rows.append(hidden[inputs.rows(torch.arange(batch.tokens, device=hidden.device))])
            same = (rows[0] == rows[1]).all(dim=1)
            outside = collate(self.documents).doc_ids.to(same.device) != changed
            worst += int((~same[outside]).sum())
            if bool(same[~outside].all()):
                self.failures.append("isolation: the changed document itself did not change")
        engine.detach()
        leaked = self._leaked_gradient(model)
        self.result.update(isolation_rows=worst, isolation_gradient=leaked)
        leak_words = "" if leaked is None else f", gradient through a document without weight {leaked:g}"
        self.lines.append(f"    isolation: {worst} hidden rows of other documents changed{leak_words}")
        if worst:
            self.failures.append(f"isolation: {worst} hidden rows of other documents changed")
        if leaked:
            self.failures.append(f"isolation: gradient {leaked:g} where there is no loss")

    def _leaked_gradient(self, model: Any) -> float | None:
        """Largest gradient of embedding rows that only the document without weight uses; None with tied tables."""
        if self.family.settings["tie_word_embeddings"]:
            return None
        half = self.family.settings["vocab_size"] // 2
        trained = documents(self.family.documents, half, seed=3)
        silent = [
            Example(ids=e.ids + (half if i == 1 else 0), weights=e.weights * (i != 1), ref=e.ref)
            for i, e in enumerate(trained)
        ]
        kept, self.documents = self.documents, silent
        try:
            step, _ = self.fast(model)
        finally:
            self.documents = kept
        table = next(grad for name, grad in step.gradients.items() if "embed_tokens" in name)
        rows = torch.as_tensor(silent[1].ids, device=table.device)
        return float(table[rows].abs().max())

    def _fp8(self, model: Any, exact: Step) -> None:
        try:
            errors = compare(self.fast(model, frozen_base="fp8")[0], exact)
        except Exception as error:  # noqa: BLE001  reported, never judged
            self.result["fp8"] = f"{type(error).__name__}: {error}"[:200]
            self.lines.append(f"    fp8: not run: {self.result['fp8'][:120]}")
            return
        self.result["fp8"] = {"loss": errors.loss, "total": errors.total, "worst": errors.worst}
        self.lines.append(
            f"    fp8: loss {errors.loss:.1e}, gradient {errors.total:.2e}, worst {errors.worst[1]:.2e} "
            f"{_short(errors.worst[0])} (reported, not judged)"
        )


def _or_equal(error: float) -> str:
    return f"{error:.1e}" if error else "equal"


def _short(name: str) -> str:
    return re.sub(r"base_model\.|model\.|\.weight|self_attn\.|\.default", "", name)


def main() -> int:
    """Run the cases; see the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--dtype", choices=list(LIMITS), help="default: bfloat16 on cuda, float32 on a CPU")
    parser.add_argument("--limit", type=float)
    parser.add_argument("--only", default="", help="regular expression over `family method`")
    parser.add_argument("--large", action=argparse.BooleanOptionalAction, help="default: on cuda")
    parser.add_argument("--budget", type=float, default=600.0, help="begin no case after this many seconds")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    options.dtype = options.dtype or ("bfloat16" if options.device == "cuda" else "float32")
    options.limit = options.limit or LIMITS[options.dtype]
    large = options.device == "cuda" if options.large is None else options.large

    from benchmarks.gpu.machine import machine, take_turn

    take_turn()
    torch.backends.cuda.matmul.allow_tf32 = False
    start = time.time()
    results, failures = [], []
    for family in (*FAMILIES, *(LARGE if large else ())):
        for method in family.methods:
            if not re.search(options.only, f"{family.name} {method}"):
                continue
            if time.time() - start > options.budget:
                failures.append(f"{family.name} {method}: not run, over the budget")
                continue
            results.append(_run(Case(family, method, options), failures))
    verdict = f"{len(results)} cases, {len(failures)} failures"
    print("\n".join(f"FAIL {failure}" for failure in failures) or "all within the limits")
    info = {
        "peer": "parity", "model": "-", "method": options.dtype, "verdict": verdict, "failures": failures,
        "limit": options.limit, "cases": results, "total_s": round(time.time() - start, 1), **machine(options.device),
    }  # fmt: skip
    print(f"RESULT {json.dumps(info)}", flush=True)
    return int(bool(failures))


def _run(case: Case, failures: list[str]) -> dict[str, Any]:
    start = time.time()
    try:
        case.run()
    except Exception as error:  # noqa: BLE001  the next case may still tell something
        traceback.print_exc()
        case.failures.append(f"{type(error).__name__}: {error}"[:300].replace("\n", " "))
    name = f"{case.family.name} {case.result['method']}"
    failures += [f"{name}: {failure}" for failure in case.failures]
    case.result.update(failures=case.failures, seconds=round(time.time() - start, 1))
    print("\n".join(case.lines or [name]), flush=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return case.result


if __name__ == "__main__":
    sys.exit(main())
