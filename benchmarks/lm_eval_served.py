"""lm-evaluation-harness in process and over `luthier serve`: the same rows, the same answers, the same scores?

    python benchmarks/lm_eval_served.py gsm8k/test.jsonl --rows 20
    python benchmarks/lm_eval_served.py gsm8k/test.jsonl --rows 20 --run runs/gsm8k

Rows are JSON lines with `question` and `answer` (GSM8K's own form) or with `messages`. The task is GSM8K's: strict and
flexible extraction, greedy, through the chat template of the run (without one: SmolLM2-135M-Instruct, the packaged
base). In process: batched generation. Over HTTP: `luthier serve` in a process of its own, chat completions,
`--concurrency` requests in flight. Answers are compared character for character. A line of JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.endpoint.client import Endpoint
from luthier.endpoint.settings import EndpointSettings
from luthier.evaluate.results import TaskResult
from luthier.evaluate.run import run_tasks
from luthier.evaluate.served import run_served
from luthier.evaluate.tasks import load_tasks
from luthier.model.load import load_base, load_tuned
from luthier.model.tokenizer import load_tokenizer
from luthier.pipeline.serving import resolve
from luthier.recipe.schema import TaskSpec
from luthier.runtime.device import pick_device, set_threads

TASK = """
task: gsm8k_rows
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["Question:"], do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: [",", "(?s).*#### "]}}
filter_list:
  - name: strict-match
    filter:
      - {{function: regex, regex_pattern: "#### (\\\\-?[0-9\\\\.\\\\,]+)"}}
      - {{function: take_first}}
  - name: flexible-extract
    filter:
      - {{function: regex, group_select: -1, regex_pattern: "(-?[0-9]+)"}}
      - {{function: take_first}}
metadata: {{version: 1.0}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows_file", type=Path)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--run", default="smollm2-135m-instruct", help="run folder, model folder or hub id")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = write_task(Path(folder), given.rows_file, given.rows)
        spec = TaskSpec.model_validate({"lm_eval": str(task), "max_new_tokens": given.max_new_tokens})
        started = time.monotonic()
        here = in_process(given.run, spec, given.dtype)
        middle = time.monotonic()
        there = over_http(given.run, spec, given.dtype, given.concurrency)
        ended = time.monotonic()
    seconds = (middle - started, ended - middle)
    report = compared(here, there, seconds) | {
        "model": given.run,
        "dtype": given.dtype,
        "concurrency": given.concurrency,
    }
    print(json.dumps(report))
    if not report["equal"]:
        raise SystemExit(1)


def write_task(folder: Path, file: Path, rows: int) -> Path:
    """The first rows as questions and answers, and the task's YAML beside them."""
    lines = file.read_text("utf-8").splitlines()[:rows]
    (folder / "rows.jsonl").write_text("".join(json.dumps(plain(json.loads(line))) + "\n" for line in lines), "utf-8")
    (folder / "task.yaml").write_text(TASK.format(rows=folder / "rows.jsonl"), "utf-8")
    return folder / "task.yaml"


def plain(row: dict[str, Any]) -> dict[str, str]:
    if "messages" not in row:
        return {"question": row["question"], "answer": row["answer"]}
    turns = {message["role"]: message["content"] for message in row["messages"]}
    return {"question": turns["user"], "answer": turns["assistant"]}


def in_process(what: str, spec: TaskSpec, dtype: str) -> list[TaskResult]:
    target, device = resolve(what, "model"), pick_device()
    set_threads()
    if target.folder is None:
        model: Any = load_base(target.section, device=device, dtype=dtype)
    else:
        model = load_tuned(target.section, target.folder, device=device, dtype=dtype, quantization=target.quantization)
    return run_tasks(
        model, load_tokenizer(target.section), load_tasks([spec]), batch_size=16,
        template_kwargs=target.section.chat_template_kwargs, control_tokens=target.control_tokens,
    )  # fmt: skip


def over_http(what: str, spec: TaskSpec, dtype: str, concurrency: int) -> list[TaskResult]:
    with served(what, dtype) as url:
        settings = EndpointSettings(base_url=url, model="model", concurrency=concurrency, timeout_seconds=600.0)
        with Endpoint(settings) as endpoint:
            return run_served(endpoint, load_tasks([spec]))


@contextmanager
def served(what: str, dtype: str) -> Iterator[str]:
    command = [sys.executable, "-m", "luthier", "serve", f"model={what}", "--port", "0", "--dtype", dtype, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line.rstrip() == "}":
                break
        yield json.loads(text)["url"]
    finally:
        process.terminate()
        process.wait(60)


def compared(here: Sequence[TaskResult], there: Sequence[TaskResult], seconds: tuple[float, float]) -> dict[str, Any]:
    rows = list(zip(here[0].rows, there[0].rows, strict=True))
    same = sum(a["output"] == b["output"] and a["finish_reason"] == b["finish_reason"] for a, b in rows)
    scores = {one.name: [one.score, other.score] for one, other in zip(here, there, strict=True)}
    equal = same == len(rows) and all(one == other for one, other in scores.values())
    return {
        "rows": len(rows), "equal": equal, "answers_equal": same, "scores": scores,
        "new_tokens": here[0].new_tokens, "seconds": [round(one, 1) for one in seconds],
    }  # fmt: skip


if __name__ == "__main__":
    main()
