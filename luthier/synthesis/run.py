"""A whole job, from the spec to the files. Read `synthesize` from top to bottom.

mode --works--> driver (server or local model, journal) --rows--> read back, filters, dedup --> judge --> files

OUT.jsonl            rows: `messages` (or `prompt`, `chosen`, `rejected`) and `provenance`
OUT.rejected.jsonl   whatever became no row, with the reason and the model's words
OUT.prompts.jsonl    rejection sampling: accepted answers of each prompt
OUT.summary.json     counts, tokens, money
OUT.journal.jsonl    every answer, as it came; the same command goes on from it
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.curate.files import refuse_sources
from luthier.runtime.atomic import write_json, write_text
from luthier.runtime.console import Bar, note, progress
from luthier.runtime.env import read_env
from luthier.runtime.errors import Problem, RecipeError
from luthier.runtime.signals import stop_on_signals
from luthier.synthesis.asking import OUTCOMES, Candidate, Made, Rejected
from luthier.synthesis.finish import Finished, check_filters, curate, judge_rows, row_of
from luthier.synthesis.journal import Journal
from luthier.synthesis.local import Local
from luthier.synthesis.modes.base import Mode
from luthier.synthesis.modes.build import build_mode
from luthier.synthesis.modes.rejection import RejectionMode
from luthier.synthesis.remote import Remote
from luthier.synthesis.sampler import Together
from luthier.synthesis.spec import EndpointSection, SynthSpec
from luthier.synthesis.templates import Templates, load_templates

__all__ = ["Files", "plan", "require_ready", "synthesize"]

_SAID = "waiting for what is in flight, then stopping"


@dataclass(frozen=True, slots=True)
class Files:
    """Where a job writes."""

    rows: Path

    @staticmethod
    def of(spec: SynthSpec, out: Path | None) -> Files:
        """From the spec, or from `--out`, which wins.

        Raises:
            RecipeError: neither names a `.jsonl` file.
        """
        path = out or (Path(spec.out) if spec.out is not None else None)
        if path is None:
            raise RecipeError(code="C104", message="no file to write", hint="--out rows.jsonl, or `out:` in the spec")
        if path.suffix != ".jsonl":
            raise RecipeError(code="C103", message=f"--out must end in .jsonl; got {path}")
        return Files(path)

    def beside(self, what: str) -> Path:
        """`rows.jsonl` -> `rows.WHAT`."""
        return self.rows.with_name(f"{self.rows.stem}.{what}")

    @property
    def journal(self) -> Path:
        """Every answer."""
        return self.beside("journal.jsonl")

    def check(self, *, force: bool) -> None:
        """Rows that no journal accounts for are somebody's: they are not replaced without being told.

        Raises:
            RecipeError: the file exists and has no journal.
        """
        if self.rows.exists() and not self.journal.exists() and not force:
            message = f"{self.rows} exists, and has no journal of an earlier run"
            raise RecipeError(problems=[Problem(code="C165", message=message, hint="another --out, or --force")])


def _read_from(spec: SynthSpec) -> list[str]:
    """Files that hold somebody's rows."""
    named = (spec.seeds and spec.seeds.examples, spec.evolve and spec.evolve.source,
             spec.rejection and spec.rejection.source)  # fmt: skip
    return [source.path for source in named if source]


def plan(spec: SynthSpec) -> dict[str, Any]:
    """What a job would ask, without asking: requests, the first of them, the most it can cost.

    Raises:
        LuthierError: sources or filters that cannot be used.
    """
    check_filters(spec)
    mode = build_mode(spec, load_templates(Path(spec.prompts) if spec.prompts else None))
    fewest, most = mode.requests()
    first = mode.first()
    answers = most * spec.sampling.max_tokens
    value: dict[str, Any] = {"mode": spec.mode, "requests": [fewest, most], "most_completion_tokens": answers,
             "first_request": list(first.messages), "source": mode.report()}  # fmt: skip
    section = spec.endpoint
    if section is not None and section.output_price is not None:
        value["most_usd_for_completions"] = answers * section.output_price / 1e6
    return value


def require_ready(spec: SynthSpec, files: Files, *, force: bool) -> None:
    """Before anything is asked or loaded.

    Raises:
        RecipeError, EnvironmentProblem: files that are somebody's, filters that cannot be used.
    """
    refuse_sources(files.rows, _read_from(spec))
    files.check(force=force)
    check_filters(spec)


def synthesize(
    spec: SynthSpec, files: Files, *, force: bool = False, together: Together | None = None
) -> dict[str, Any]:
    """Do the whole job; returns the summary that is in OUT.summary.json.

    `together`: the processes that sample with a local model, of which this is process 0; None: this one.

    Raises:
        RecipeError, DataError, EnvironmentProblem: spec, sources or files that cannot be used; nothing was asked.
        AccessError, RunFailed: the server cannot be used; answers so far are in the journal.
        Interrupted: Ctrl-C; the same command goes on.
    """
    started = time.monotonic()
    require_ready(spec, files, force=force)
    templates = load_templates(Path(spec.prompts) if spec.prompts else None)
    mode = build_mode(spec, templates)
    with Journal(files.journal) as journal, stop_on_signals(_SAID) as stop:
        known = len(journal)
        if known:
            note(f"{known:,} answers are in {files.journal}: they are not asked again")
        driver = Local(spec, journal, stop, together) if spec.local is not None else Remote(spec, journal, stop)
        try:
            done, rejected = _rows(spec, mode, templates, driver, journal)
        finally:
            if isinstance(driver, Remote):
                driver.__exit__()
            else:
                driver.together.done()
        told = {
            "name": spec.name or files.rows.stem, "mode": spec.mode, "out": str(files.rows), "rows": len(done.rows),
            "outcomes": _outcomes(done.rows, rejected), "source": mode.report(), "curated": done.report,
            "servers": _servers(spec, driver, journal), "answers_in_journal": len(journal),
            "answers_new": len(journal) - known, "seconds": round(time.monotonic() - started, 3),
        }  # fmt: skip
        _write(files, mode, done.rows, rejected, told)
    return told


def _rows(
    spec: SynthSpec, mode: Mode, templates: Templates, driver: Local | Remote, journal: Journal
) -> tuple[Finished, list[Rejected]]:
    """All rows that are left, and all that are not."""
    with progress(spec.mode, mode.total, "items") as bar:
        made = mode.produce(driver, _Told(bar, spec, journal, driver).done)
    rows = [one for one in made if isinstance(one, Candidate)]
    rejected = [one for one in made if isinstance(one, Rejected)]
    done = curate(spec, rows, cache_dir=read_env().cache_dir / "dedup")
    rejected += done.rejected
    scores_answers = spec.rejection is not None and spec.rejection.scorer.name == "judge"
    if spec.judge is not None and not scores_answers and done.rows:
        with progress("judge", len(done.rows), "rows") as bar:
            judged = judge_rows(spec, templates, done.rows, driver, _Told(bar, spec, journal, driver).done)
        rejected += judged.rejected
        done.rows = judged.rows
    return done, rejected


class _Told:
    """What stands beside the bar: rows so far, tokens, money."""

    def __init__(self, bar: Bar, spec: SynthSpec, journal: Journal, driver: Local | Remote) -> None:
        self.bar, self.spec, self.journal, self.driver = bar, spec, journal, driver
        self.rows = self.lost = 0

    def done(self, made: list[Made]) -> None:
        """A work has ended."""
        rows = sum(isinstance(one, Candidate) for one in made)
        self.rows, self.lost = self.rows + rows, self.lost + len(made) - rows
        totals = _servers(self.spec, self.driver, self.journal).values()
        tokens = sum(server["prompt_tokens"] + server["completion_tokens"] for server in totals)
        costs = [server["cost_usd"] for server in totals if server["cost_usd"] is not None]
        money = f", ${sum(costs):.4f}" if costs else ""
        self.bar.advance(say=f"{self.rows:,} accepted, {self.lost:,} rejected, {tokens:,} tokens{money}")


def _outcomes(rows: list[Candidate], rejected: Iterable[Rejected]) -> dict[str, int]:
    counts: Counter[str] = Counter(one.outcome for one in rejected)
    counts["ok"] = len(rows)
    return {name: counts[name] for name in OUTCOMES if counts[name]}


def _servers(spec: SynthSpec, driver: Local | Remote, journal: Journal) -> dict[str, dict[str, Any]]:
    """Tokens and money of the whole job (all sessions, by the journal), and the counts of this session, by server."""
    if isinstance(driver, Local):
        spent = journal.spent(driver.host)
        return {driver.host: {"prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.completion_tokens,
                              "cost_usd": None}}  # fmt: skip
    told: dict[str, dict[str, Any]] = {}
    sections: list[EndpointSection | None] = [spec.endpoint, spec.judge.endpoint if spec.judge else None]
    usages: Mapping[str, Any] = driver.usage()
    for section in sections:
        if section is None:
            continue
        name = f"{section.base_url.rstrip('/')}/chat/completions {section.model}"
        spent, usage = journal.spent(name), usages[name]
        cost = None
        if section.input_price is not None and section.output_price is not None:
            cost = (spent.prompt_tokens * section.input_price + spent.completion_tokens * section.output_price) / 1e6
        told[name] = {"prompt_tokens": spent.prompt_tokens, "completion_tokens": spent.completion_tokens,
                      "cost_usd": cost, "session": usage.to_json()}  # fmt: skip
    return told


def _write(files: Files, mode: Mode, rows: list[Candidate], rejected: list[Rejected], told: dict[str, Any]) -> None:
    """All files, each whole; the rows last but for the summary."""
    write_text(files.beside("rejected.jsonl"), _lines(one.to_json() for one in rejected))
    if isinstance(mode, RejectionMode):
        write_text(files.beside("prompts.jsonl"), _lines(mode.per_prompt()))
    write_text(files.rows, _lines(row_of(one) for one in rows))
    write_json(files.beside("summary.json"), told)


def _lines(values: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n" for value in values)
