"""The same prompts through every form of a run: adapter, merged, merged in bf16, GGUF types, served over HTTP.

    luthier quickstart && python benchmarks/export_parity.py runs/quickstart --types f16 q8_0 q4_0

For each form: ids of the prompts equal to training's, greedy answers equal to the adapter's token for token, largest
difference of the 20 likeliest first log-probabilities, and the run's own task scored on the same rows. llama.cpp is the
reader of the GGUF files; `--serve` starts `luthier serve` on the run and asks it over HTTP. A table and JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOP = 20


@dataclass
class Form:
    """What one form of the model said."""

    name: str
    prompts_equal: int = 0
    first: list[dict[int, float]] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    score: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--types", nargs="*", default=["f32", "f16", "q8_0", "q4_0"])
    parser.add_argument("--rows", type=int, default=50)
    parser.add_argument("--serve", action="store_true", help="also over HTTP")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    world = World(given.run, given.rows)
    forms = [world.ask("adapter", world.adapter(), world.prompts), world.ask("merged", world.merged(), world.of_merged)]
    forms.append(world.ask("merged, computed in bf16", world.merged("bfloat16"), world.of_merged))
    with tempfile.TemporaryDirectory() as folder:
        for kind in given.types:
            forms.append(world.ask_gguf(kind, Path(folder)))
            print(f"{forms[-1].name}: {forms[-1].score:.3f}", flush=True)
    if given.serve:
        forms.append(world.ask_served())
    rows = [compared(form, forms[0], len(world.prompts)) for form in forms]
    print(table(rows))
    text = json.dumps({"rows": len(world.prompts), "task": world.task.name, "forms": rows}, indent=1)
    (given.out or Path("/dev/stdout")).write_text(text + "\n")


class World:
    """The run, its task and its prompts."""

    def __init__(self, run: Path, rows: int) -> None:
        from luthier.data.template import ChatTemplate
        from luthier.evaluate.tasks import load_tasks
        from luthier.model.stops import stop_ids
        from luthier.pipeline.rerun import recipe_of_run
        from luthier.runtime.device import pick_device

        self.run, self.recipe, self.device = run, recipe_of_run(run), pick_device()
        spec = self.recipe.evaluate.tasks[0].model_copy(update={"limit": rows})
        (self.task,) = load_tasks([spec])
        from transformers import AutoTokenizer

        def template(folder: str) -> ChatTemplate:
            return ChatTemplate(
                AutoTokenizer.from_pretrained(run / folder), kwargs=self.recipe.model.chat_template_kwargs
            )

        self.tokenizer = AutoTokenizer.from_pretrained(run / "merged")
        trained, merged = template("final"), template("merged")
        self.prompts = [trained.prompt_ids(row.messages) for row in self.task.rows]
        self.of_merged = [merged.prompt_ids(row.messages) for row in self.task.rows]
        self.texts = [trained.render(row.messages, add_generation_prompt=True) for row in self.task.rows]
        self.stops = stop_ids(self.tokenizer, self.merged())
        self.spelled = [self.tokenizer.decode([index]) for index in range(len(self.tokenizer))]
        self.told = int(self.tokenizer("a", add_special_tokens=False)["input_ids"][-1])

    def adapter(self) -> Any:
        from luthier.model.load import load_tuned

        section = self.recipe.model
        return load_tuned(section, self.run / "final", device=self.device, dtype="float32", quantization="none")

    def merged(self, dtype: str = "float32") -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.run / "merged", dtype=getattr(torch, dtype)).eval()

    def ask(self, name: str, model: Any, prompts: Sequence[Sequence[int]]) -> Form:
        import torch

        from luthier.generation.generate import generate

        equal = sum(list(ours) == list(theirs) for ours, theirs in zip(self.prompts, prompts, strict=True))
        form = Form(name, prompts_equal=equal)
        for ids in prompts:
            with torch.no_grad():
                logs = torch.log_softmax(model(input_ids=torch.tensor([list(ids)])).logits[0, -1].float(), -1)
            form.first.append(dict(enumerate(logs.tolist())))
        found = generate(
            model, self.tokenizer, prompts, max_new_tokens=self.task.max_new_tokens, stop_ids=self.stops, batch_size=16,
            label=name,
        )  # fmt: skip
        form.answers = [list(item.ids) for item in found]
        form.score = self.scored(form.answers)
        return form

    def ask_gguf(self, kind: str, folder: Path) -> Form:
        from luthier.export.gguf.export import export_gguf
        from luthier.export.gguf.runner import running

        (report,) = export_gguf(self.run / "merged", folder, [kind], name="parity")
        form = Form(f"GGUF {kind}, llama.cpp")
        room = max(map(len, self.prompts)) + self.task.max_new_tokens + 8
        with running(folder / report.file, context=room) as runner:
            for ids, text in zip(self.prompts, self.texts, strict=True):
                form.prompts_equal += runner.tokenize(text) == list(ids)
                form.first.append(runner.first(ids, top=TOP, told=self.told)[0])
                form.answers.append(runner.answer(ids, max_new_tokens=self.task.max_new_tokens))
        form.score = self.scored(form.answers)
        (folder / report.file).unlink()
        return form

    def ask_served(self) -> Form:
        form = Form("luthier serve, HTTP")
        command = [sys.executable, "-m", "luthier", "serve", str(self.run), "--port", "0", "--json"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                started = _first_value(process.stdout)
                name = next(item for item in started["models"] if item == self.run.resolve().name)
                for row, ids in zip(self.task.rows, self.prompts, strict=True):
                    found = self._ask_over_http(started["url"], name, [dict(message) for message in row.messages])
                    choice = found["choices"][0]
                    form.prompts_equal += found["prompt_token_ids"] == list(ids)
                    form.answers.append(list(choice["token_ids"]))
                    form.first.append(self._by_id(choice["logprobs"]["content"][0]["top_logprobs"]))
            finally:
                process.terminate()
        form.score = self.scored(form.answers)
        return form

    def _ask_over_http(self, url: str, name: str, messages: list[dict[str, Any]]) -> Any:
        body = {"model": name, "messages": messages, "temperature": 0, "max_tokens": self.task.max_new_tokens,
                "logprobs": True, "top_logprobs": TOP, "return_token_ids": True}  # fmt: skip
        request = urllib.request.Request(
            f"{url.rstrip('/')}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.load(reply)

    def _by_id(self, items: Sequence[dict[str, Any]]) -> dict[int, float]:
        ids = {token: index for index, token in enumerate(self.spelled)}
        return {ids[item["token"]]: item["logprob"] for item in items if item["token"] in ids}

    def scored(self, answers: Sequence[Sequence[int]]) -> float:
        from luthier.evaluate.scored import score_rows

        texts = [self.tokenizer.decode(self.until_stop(ids), skip_special_tokens=True) for ids in answers]
        scores = score_rows(self.task, texts)
        return sum(score.value for score in scores) / len(scores)

    def until_stop(self, ids: Sequence[int]) -> list[int]:
        place = next((index for index, token in enumerate(ids) if token in self.stops), len(ids))
        return list(ids[:place])


def _first_value(lines: Iterable[str]) -> Any:
    """The JSON at the beginning of a stream that goes on."""
    text = ""
    for line in lines:
        text += line
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            continue
    raise SystemExit(f"luthier serve ended: {text}")


def compared(form: Form, reference: Form, rows: int) -> dict[str, Any]:
    """One line of the table; differences of log-probabilities over the reference's likeliest tokens."""
    gaps = []
    for ours, theirs in zip(reference.first, form.first, strict=True):
        top = sorted(ours, key=lambda token: -ours[token])[:TOP]
        gaps.append(max((abs(ours[token] - theirs[token]) for token in top if token in theirs), default=float("nan")))
    same = sum(_plain(one) == _plain(other) for one, other in zip(reference.answers, form.answers, strict=True))
    return {
        "form": form.name, "prompts_equal": form.prompts_equal, "rows": rows, "answers_equal": same,
        "largest_difference": max(gaps), "median_difference": sorted(gaps)[len(gaps) // 2], "score": form.score,
    }  # fmt: skip


def _plain(ids: Sequence[int]) -> list[int]:
    return list(ids)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The lines as Markdown."""
    lines = [
        "| form | prompts equal | answers equal | log-probability: largest, median difference | task |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        gap = f"{row['largest_difference']:.2g}, {row['median_difference']:.2g}"
        of = row["rows"]
        equal = f"{row['prompts_equal']} of {of} | {row['answers_equal']} of {of}"
        lines.append(f"| {row['form']} | {equal} | {gap} | {row['score']:.3f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
