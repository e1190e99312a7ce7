"""`luthier jobs`: the fine-tuning jobs of a home or a server, for the terminal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json, show

if TYPE_CHECKING:
    from luthier.jobs.desk import Desk

app = typer.Typer(help="Look at fine-tuning jobs of a service, and steer them.", no_args_is_help=True)
HomeOption = Annotated[Path, typer.Option(envvar="LUTHIER_HOME", help="Folder of `luthier api` on this machine.")]
UrlOption = Annotated[
    str | None, typer.Option(envvar="LUTHIER_API_URL", help="A server instead, for instance http://host:8000/v1.")
]
KeyOption = Annotated[
    str | None, typer.Option("--api-key", envvar="LUTHIER_API_KEY", help="Key for the server.", show_default=False)
]
JobArgument = Annotated[
    str, typer.Argument(help="Id of a job, its last four characters or more, or `last`.", show_default=False)
]
HOME = Path(".luthier")
ENDS = {"succeeded": 0, "failed": 1, "cancelled": 130}
"""Exit code of `tail` by how the job ended."""


@app.command("ls")
def ls(
    status: Annotated[str | None, typer.Option(help="Only jobs of this state.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Jobs looked at, newest first.")] = 50,
    home: HomeOption = HOME, url: UrlOption = None, api_key: KeyOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """List jobs, newest first."""
    jobs = [job for job in _desk(home, url, api_key).jobs(limit=limit) if status in (None, job["status"])]
    if as_json:
        emit_json(jobs)
        return
    from rich.table import Table
    from rich.text import Text

    table = Table("job", "status", "model", "method", "created", "ends about", "tuned model", box=None, pad_edge=False)
    for job in jobs:
        method = (job.get("method") or {}).get("type", "")
        cells = (job["id"], job["status"], job["model"], method, _when(job["created_at"]), _end(job),
                 job.get("fine_tuned_model") or "")  # fmt: skip
        table.add_row(*(Text(_plain(cell)) for cell in cells))
    show(table if jobs else "no jobs")


@app.command("show")
def show_job(
    job: JobArgument, home: HomeOption = HOME, url: UrlOption = None, api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Everything about one job: state, settings, checkpoints, the newest events."""
    from luthier.jobs.desk import find_job

    desk = _desk(home, url, api_key)
    found = find_job(desk, job)
    checkpoints, events = desk.checkpoints(found["id"]), desk.events(found["id"], after=None, limit=10)
    if as_json:
        emit_json({"job": found, "checkpoints": checkpoints, "events": events})
        return
    for name, value in found.items():
        if value not in (None, [], {}, ()):
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            shown = _when(value) if name in ("created_at", "started_at", "finished_at", "estimated_finish") else shown
            show(f"{name:>18}  {_plain(shown)}")
    for one in checkpoints:
        show(f"{'checkpoint':>18}  {_plain(one['fine_tuned_model_checkpoint'])}{_numbers(one['metrics'])}")
    for event in events:
        _print(event)


@app.command("tail")
def tail(
    job: JobArgument, home: HomeOption = HOME, url: UrlOption = None, api_key: KeyOption = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Between two looks.")] = 1.0,
    as_json: JsonOption = False,
) -> int:  # fmt: skip
    """Follow a job until it ends. Exit code: 0 succeeded, 1 failed, 130 cancelled. With --json one event a line."""
    from luthier.jobs.desk import find_job

    desk = _desk(home, url, api_key)
    found = find_job(desk, job)
    last: str | None = None
    while True:
        status = desk.job(found["id"])["status"]  # before the events: none of an ended job is missed
        for event in desk.events(found["id"], after=last, limit=10**9):
            last = event["id"]
            if as_json:
                sys.stdout.write(json.dumps(event, default=str) + "\n")
            else:
                _print(event)
        sys.stdout.flush()
        if status in ENDS:
            return ENDS[status]
        time.sleep(seconds)


@app.command("cancel")
def cancel(
    job: JobArgument, home: HomeOption = HOME, url: UrlOption = None, api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Cancel a job; one that is running ends within seconds."""
    _ask("cancel", job, _desk(home, url, api_key), as_json=as_json)


@app.command("pause")
def pause(
    job: JobArgument, home: HomeOption = HOME, url: UrlOption = None, api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Pause a running job: it saves a checkpoint and frees its GPU."""
    _ask("pause", job, _desk(home, url, api_key), as_json=as_json)


@app.command("resume")
def resume(
    job: JobArgument, home: HomeOption = HOME, url: UrlOption = None, api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Resume a paused job: it goes on from its checkpoint when a worker is free."""
    _ask("resume", job, _desk(home, url, api_key), as_json=as_json)


def _ask(verb: str, text: str, desk: Desk, *, as_json: bool) -> None:
    from luthier.jobs.desk import find_job

    job = desk.ask(find_job(desk, text)["id"], verb)
    if as_json:
        emit_json(job)
    else:
        show(f"{job['id']} is {job['status']}" + (", and will be as you want it" if _pending(verb, job) else ""))


def _pending(verb: str, job: dict[str, Any]) -> bool:
    wanted = {"cancel": "cancelled", "pause": "paused", "resume": "running"}[verb]
    return str(job["status"]) != wanted


def _desk(home: Path, url: str | None, key: str | None) -> Desk:
    from luthier.jobs.desk import LocalDesk, RemoteDesk

    return RemoteDesk(url, key) if url else LocalDesk(home)


def _print(event: dict[str, Any]) -> None:
    mark = {"warn": "warning: ", "error": "error: "}.get(event["level"], "")
    show(f"{_when(event['created_at'])}  {mark}{_plain(event['message'])}")


def _plain(text: Any) -> str:
    """Without what a terminal would obey: texts come from users and files."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in str(text))


def _when(seconds: Any) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if isinstance(seconds, int | float) else ""


def _end(job: dict[str, Any]) -> str:
    return _when(job.get("finished_at")) or _when(job.get("estimated_finish"))


def _numbers(metrics: dict[str, Any]) -> str:
    shown = [f"{name} {value:.4g}" for name, value in metrics.items()
             if name in ("train_loss", "valid_loss") and isinstance(value, int | float)]  # fmt: skip
    return "  " + ", ".join(shown) if shown else ""
