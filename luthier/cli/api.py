"""`luthier api`: a self-hosted OpenAI fine-tuning service; `luthier api keys`: who may use it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json, show
from luthier.runtime.console import note
from luthier.runtime.errors import Problem, RecipeError

if TYPE_CHECKING:
    from luthier.api.service import Ready
    from luthier.jobs.store import Store

HOME = Path(".luthier")
SERVER_OPTIONS = ("runs", "host", "port", "config", "workers", "as_json")

app = typer.Typer(help="Serve OpenAI's fine-tuning API: files, jobs, models, chat.", invoke_without_command=True)
keys = typer.Typer(help="Keys of the API.", no_args_is_help=True)
app.add_typer(keys, name="keys")

HomeOption = Annotated[Path | None, typer.Option("--home", help="Folder of the service.", show_default=str(HOME))]


@app.callback()
def api(
    context: typer.Context,
    home: HomeOption = None,
    runs: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    host: Annotated[
        str | None, typer.Option(help="Address; other than loopback only with keys.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0: any free one.", show_default="8000")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="api.yaml: models, limits, workers, webhooks.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, max=64, help="Jobs at a time; 0: none here.", show_default="one for each GPU, or one"),
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Serve OpenAI's fine-tuning API: files, jobs, models, chat."""
    if context.invoked_subcommand is not None:
        _only_home(context)
        context.obj = home
        return
    from luthier.api.config import needed_packages

    needed_packages()
    from luthier.api.config import read_settings
    from luthier.api.service import run_service

    settings = read_settings(config, host=host, port=port)
    home = home or HOME
    run_service(home, runs, settings, workers=workers, ready=lambda now: _tell(now, home, runs, as_json=as_json))
    note("stopped; jobs that were running go on at the next start")


def _tell(now: Ready, home: Path, runs: Path, *, as_json: bool) -> None:
    base = f"{now.url}/v1"
    if as_json:
        emit_json(
            {"base_url": base, "home": str(home), "runs": str(runs), "keys": now.keys, "workers": now.workers,
             "models": list(now.models)}
        )  # fmt: skip
        sys.stdout.flush()
    key = "a key of yours" if now.keys else "local"
    note(f"OpenAI's client finds it at {base}:")
    note(f"  export OPENAI_BASE_URL={base} OPENAI_API_KEY='{key}'")
    if not now.keys:
        note("  no keys: only this machine may ask, with any key (`luthier api keys new` makes the first)")
    note(f"models: {', '.join(now.models)}; {now.workers} worker{'' if now.workers == 1 else 's'}")
    note(f"files and jobs: {home}; run folders: {runs}; logs: {home / 'logs'}")
    note("Ctrl-C stops; running jobs save a checkpoint and go on at the next start")


def _only_home(context: typer.Context) -> None:
    sources = {name: context.get_parameter_source(name) for name in SERVER_OPTIONS}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        shown = {"as_json": "json"}
        raise RecipeError(
            problems=[
                Problem(code="A104", message=f"--{shown.get(name, name)} before `{context.invoked_subcommand}` has no "
                        "effect", hint="options of a command stand behind it")
                for name in given
            ]
        )  # fmt: skip


def _store(context: typer.Context, home: Path | None, *, make: bool = False) -> Store:
    """The store of a home.

    Raises:
        RecipeError: A105 no service was ever there.
    """
    from luthier.jobs.store import Store

    home = home or context.obj or HOME
    if not make and not (home / "service.db").is_file():
        raise RecipeError(
            code="A105", message=f"{home} is no home of a service", hint="--home; `luthier api` makes one"
        )
    return Store.open(home)


@keys.command("new")
def new(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What it is for.", show_default=False)],
    owner: Annotated[str, typer.Option(help="Whose files, jobs and models it opens.")] = "local",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="files, jobs, models, chat, read, admin; several times.",
                     show_default="files, jobs, models, chat"),
    ] = None,
    max_queued: Annotated[int | None, typer.Option(min=1, help="Jobs that may wait.", show_default=False)] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Requests.", show_default=False)] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Make a key. It is shown once; only its hash is kept."""
    store = _store(context, home, make=True)
    given = {"max_queued": max_queued, "requests_per_minute": requests_per_minute}
    limits = {limit: value for limit, value in given.items() if value is not None}
    record, text = store.new_key(name, owner, scope or ("files", "jobs", "models", "chat"), limits)
    store.audit(owner, "new key", record.id, "ok", "command line")
    store.close()
    if as_json:
        emit_json({**_shown(record), "key": text})
    else:
        show(text)
        note("this is shown once; `luthier api keys revoke` ends it")


@keys.command("ls")
def ls(context: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the keys, oldest first."""
    store = _store(context, home)
    found = store.keys()
    records = [_shown(record) for record in found]
    store.close()
    if as_json:
        emit_json(records)
        return
    from rich.table import Table

    table = Table("id", "name", "owner", "scopes", "limits", "made", "revoked", box=None, pad_edge=False)
    for one in records:
        limits = ", ".join(f"{name} {value}" for name, value in one["limits"].items())
        table.add_row(
            one["id"], one["name"], one["owner"], ", ".join(one["scopes"]), limits, _when(one["created_at"]),
            _when(one["revoked_at"]),
        )  # fmt: skip
    show(table if records else "no keys: a server on loopback answers this machine without one")


@keys.command("revoke")
def revoke(
    context: typer.Context,
    key_id: Annotated[str, typer.Argument(help="Its id, as `keys ls` shows it.", show_default=False)],
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a key at once."""
    store = _store(context, home)
    record = store.revoke(key_id)
    store.audit(record.owner, "revoke key", record.id, "ok", "command line")
    store.close()
    if as_json:
        emit_json(_shown(record))
    else:
        note(f"{record.id} ({record.name}) opens nothing any more")


def _shown(record: Any) -> dict[str, Any]:
    return {
        "id": record.id, "name": record.name, "owner": record.owner, "scopes": sorted(record.scopes),
        "limits": dict(record.limits), "created_at": record.created_at, "revoked_at": record.revoked_at,
    }  # fmt: skip


def _when(seconds: int | None) -> str:
    import time

    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
