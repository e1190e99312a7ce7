"""How a job ends: a run's exit code and problems as OpenAI's error, or the tuned model with its result file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.jobs.files import RESULTS
from luthier.jobs.models import tuned_name
from luthier.jobs.records import JobRecord, ModelRecord
from luthier.jobs.store import Store
from luthier.jobs.worker.folder import JobPlace
from luthier.jobs.worker.result import result_csv, result_name
from luthier.runtime.errors import LuthierError
from luthier.runtime.scrub import scrub

__all__ = ["FINAL_CODES", "error_of_exit", "error_of_luthier", "error_of_problems", "succeed"]

FINAL_CODES = (1, 2, 3, 4, 5, 6)
"""Exit codes of `luthier run` that another attempt would give again (docs/errors.md)."""
CODES = {1: "training_failed", 2: "invalid_recipe", 3: "invalid_training_file", 4: "server_error", 5: "out_of_memory",
         6: "model_not_available"}  # fmt: skip
SHOWN = 20


def error_of_exit(job: JobRecord, place: JobPlace, code: int) -> dict[str, Any]:
    """`{code, message, param}` of a run that ended with an exit code other than 0."""
    try:
        problems = json.loads(place.out.read_text("utf-8"))["problems"]
    except (OSError, ValueError, KeyError, TypeError):
        problems = [{"message": _tail(place.log) or f"the run ended with exit code {code}"}]
    return error_of_problems(job, problems, code, places={str(place.run.path): job.run_name})


def error_of_problems(
    job: JobRecord, problems: Sequence[Mapping[str, Any]], code: int, *, places: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The same from problems. Secrets and paths of this machine are taken out: a client reads it.

    Args:
        job: whose files are called by their ids.
        problems: as `Problem.to_dict` gives them.
        code: exit code of the command line.
        places: folders, and what to call them.
    """
    files = {_called(problem["file"]) for problem in problems if problem.get("file")}
    of_validation = job.validation_file is not None and files == {job.validation_file}
    name, param = CODES.get(code, "training_failed"), None
    if code == 3:
        param = "validation_file" if of_validation else "training_file"
        name = f"invalid_{param}"
    elif code == 6:
        param = "model"
    lines = [_line(problem) for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"and {len(problems) - SHOWN:,} more")
    text = "\n".join(lines)
    for place, called in (places or {}).items():
        text = text.replace(place, called)
    return {"code": name, "message": scrub(text), "param": param}


def error_of_luthier(job: JobRecord, error: LuthierError) -> dict[str, Any]:
    """The same from an error of ours."""
    return error_of_problems(job, [problem.to_dict() for problem in error.problems], error.exit_code)


def _line(problem: Mapping[str, Any]) -> str:
    where = _called(problem["file"]) if problem.get("file") else ""
    if problem.get("line"):
        where += f" line {problem['line']}"
    hint = f" ({problem['hint']})" if problem.get("hint") else ""
    return f"{where + ': ' if where else ''}{problem.get('message', '')}{hint}"


def _called(file: str) -> str:
    """What a client knows a file by: an uploaded one by its id."""
    name = Path(file).name
    return name.removesuffix(".jsonl") if name.startswith("file-") else name


def _tail(log: Path, *, most: int = 2_000) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - most))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-5:])


def succeed(store: Store, job: JobRecord, place: JobPlace, *, worker: str, organization: str) -> JobRecord:
    """Keep the result file and the model, and end the job. Doing it again after a kill changes nothing.

    Raises:
        LeaseLost: another worker has the job.
        RunFailed: the record of the training is damaged.
    """
    train = place.run.stage("train")
    tokens = train.result.get("tokens") if train is not None else None
    file = _result_file(store, job, place)
    name = tuned_name(job, organization)
    store.put_model(
        ModelRecord(
            name=name, owner=job.owner, created=store.now(), kind="tuned", base=job.base, path=str(place.run.path),
            job_id=job.id, parent=job.model,
        )
    )  # fmt: skip
    _tell_scores(store, job, place)
    store.add_event(job.id, "info", f"New fine-tuned model created: {name}", data={"model": name}, mark="model")
    return store.move(
        job.id, to="succeeded", by=worker, fine_tuned_model=name, result_files=[file], trained_tokens=tokens
    )


def _result_file(store: Store, job: JobRecord, place: JobPlace) -> str:
    name, after = result_name(job.id), None
    while True:  # one that an earlier attempt wrote before it was killed
        files, more = store.files(job.owner, after=after, purpose=RESULTS)
        for file in files:
            if file.filename == name:
                return file.id
        if not more:
            break
        after = files[-1].id
    return store.add_file(job.owner, name, RESULTS, [result_csv(place.run.read_lines("metrics.jsonl"))]).id


def _tell_scores(store: Store, job: JobRecord, place: JobPlace) -> None:
    """Before and after, where the recipe has tasks."""
    compare = place.run.stage("compare")
    for task in compare.result.get("tasks", []) if compare is not None else []:
        message = (
            f"{task['name']}: {task['before']:.3f} before, {task['after']:.3f} after, p = {task['p_value']:.2g}: "
            f"{task['verdict']}"
        )
        store.add_event(job.id, "info", message, data={"comparison": task}, mark=f"comparison-{task['name']}")
