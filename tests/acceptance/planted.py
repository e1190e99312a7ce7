"""Plants known bugs in a private copy of the package and says which checks notice.

    python tests/acceptance/planted.py [NAME...]

A check that never failed proves nothing. Each bug is a change of one or two lines; the copy lives in a
temporary folder, the suite runs on it with `--fork --tree`. Exit 1 if a bug goes unnoticed.
"""
# ruff: noqa: E501 - the lines to change stand here as they stand in the source

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Bug:
    """One planted bug."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    """File below luthier/, text, its replacement."""
    checks: str
    """The checks to run, of which at least one must fail."""


BUGS = (
    Bug("mean of means", (("train/step.py", "trainer.weights.backward(sums.loss * scale)",
        "trainer.weights.backward(sums.loss / max(item.batch.weight_sum, 1e-9))"),), "2,5,11"),
    Bug("mask lost", (("data/batch.py", "weights = np.concatenate([np.asarray(example.weights, dtype=np.float32) for example in examples])",
        "weights = np.concatenate([np.r_[0, np.ones(len(example.ids) - 1)].astype(np.float32) for example in examples])"),), "6,13,18"),
    Bug("optimizer state dropped on resume", (("train/snapshot.py", "        restore_optimizer(trainer.optimizer, trainer.weights.tensors, held=held, numbers=numbers)\n", ""),), "25,27,29,30"),
    Bug("labels shifted twice", (("data/batch.py", "target_ids=torch.from_numpy(ids[targets])",
        "target_ids=torch.from_numpy(ids[np.minimum(targets + 1, len(ids) - 1)])"),), "6,12,13,19"),
    # Only in batches beyond those of the probe, which finds it otherwise and takes the padded layout.
    Bug("packed documents see each other", (("fast/attention.py", '"""From boundaries on the device, lengths and prefixes on the host."""\n',
        '"""From boundaries on the device, lengths and prefixes on the host."""\n        lengths = lengths if sum(lengths) < 120 else (sum(lengths),)\n'),), "2,5,6,19"),
    Bug("answers end without their terminator", (("data/mask.py", "return Turn(message=index, start=start, end=end, ",
        "return Turn(message=index, start=start, end=end - len(terminator), "),), "13,15,17"),
    Bug("a step that is not finite goes on", (("train/step.py", "    if not_finite:\n", "    if not_finite and step < 0:\n"),), "8"),
    Bug("NaN in the base is not looked for", (("model/weights.py", "bad.append(name)", "pass"),), "8"),
    Bug("hashes are not compared", (("train/checkpoint.py", "if hash_file(file) != digest:", "if not digest:"),), "29"),
    Bug("checkpoints are written in place", (("train/checkpoint.py", "    with atomic_folder(path) as temporary:\n",
        "    path.mkdir(parents=True, exist_ok=True)\n    for temporary in (path,):\n"),), "27,30"),
    Bug("damaged checkpoints are resumed", (("train/resume.py", "problems = verify(checkpoint.path)", "problems = []"),), "27,29"),
    Bug("other settings are resumed", (("train/resume.py", "_require_same(identity, state[\"identity\"], checkpoint)", "pass"),
        ("pipeline/train_stage.py", "    if changed:\n        raise RecipeError(\n            code=\"T432\"", "    if not changed and changed:\n        raise RecipeError(\n            code=\"T432\"")), "29"),
    Bug("the cache forgets the template", (("data/cache.py", '"chat template": _template_hash(template),', '"chat template": "",'),), "22"),
    Bug("bf16 without masters", (("train/masters.py", "LOW_PRECISION = (torch.bfloat16, torch.float16)", "LOW_PRECISION = ()"),), "10"),
    Bug("learning rate one step ahead", (("train/step.py", "trainer.schedule.set(step)", "trainer.schedule.set(step + 1)"),), "11"),
    Bug("validation with dropout", (("train/validate.py", "    module.eval()\n", ""),), "12"),
    Bug("loss as the mean of row means", (("evaluate/run.py", "mean = sum(sums) / sum(weights)", "mean = sum(s / w for s, w in zip(sums, weights)) / len(sums)"),), "12"),
    Bug("no stop ids in the export", (("model/save.py", "def write_stop_ids(folder: Path, ids: list[int], model: Any) -> None:\n", "def write_stop_ids(folder: Path, ids: list[int], model: Any) -> None:\n    return\n"),), "31"),
    Bug("seed ignored", (("train/order.py", 'random.Random(f"luthier order {seed} {epoch}")', 'random.Random()'),), "1,2,25"),
    Bug("code of the model folder is trusted", (("model/load.py", 'if section.trust_remote_code and "auto_map" in raw:', 'if "auto_map" in raw:'),), "37"),
)  # fmt: skip


def main() -> int:
    """Plant, run, report."""
    wanted = set(sys.argv[1:])
    unnoticed = 0
    for bug in BUGS:
        if wanted and bug.name not in wanted:
            continue
        with tempfile.TemporaryDirectory(prefix="luthier-planted-") as folder:
            found = plant(bug, Path(folder))
        noticed = [item for item in found if item["verdict"] in ("silently wrong", "failed")]
        unnoticed += not noticed
        print(f"{bug.name}: {'noticed' if noticed else 'NOT NOTICED'} by {len(noticed)} of {len(found)}", flush=True)
        for item in noticed:
            first = next(measure["text"] for measure in item["measures"] if not measure["ok"])
            print(f"    {item['number']:>3} {item['verdict']}: {' '.join(first.split())[-230:]}", flush=True)
    return int(unnoticed > 0)


def plant(bug: Bug, folder: Path) -> list[dict[str, Any]]:
    """The checks' findings on a copy with the bug."""
    shutil.copytree(ROOT / "luthier", folder / "luthier", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text, replacement in bug.edits:
        path = folder / "luthier" / name
        source = path.read_text("utf-8")
        assert source.count(text) == 1, f"{bug.name}: the text to change is no longer in {name}"
        path.write_text(source.replace(text, replacement), "utf-8")
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--fork", "--json", "--tree", str(folder)]
    done = subprocess.run([*command, "--only", bug.checks], capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)["checks"]


if __name__ == "__main__":
    sys.exit(main())
