"""`luthier studio`: the web pages, on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json
from luthier.runtime.console import note


def studio(
    runs: Annotated[Path, typer.Argument(help="Folder of run folders.")] = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 7860,
    host: Annotated[str, typer.Option(help="Address; other than loopback only with a key of the API.")] = "127.0.0.1",
    home: Annotated[Path, typer.Option(help="Folder of the API: files, jobs, keys.")] = Path(".luthier"),
    config: Annotated[Path | None, typer.Option(help="api.yaml of the API: models, limits, workers.")] = None,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Jobs of the API to run at a time here.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the pages in the browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Web pages over all runs of a folder: data, recipes, live curves, comparisons, answers, a playground."""
    from luthier.api.config import needed_packages, read_settings

    needed_packages()
    from luthier.studio.serve import run_studio
    from luthier.studio.settings import StudioSettings

    settings = StudioSettings(
        runs=runs, root=Path(), program=(sys.executable, "-m", "luthier")
    ).absolute()  # fmt: skip
    service = read_settings(config, host=host, port=port)
    # Streams of pages never end by themselves.
    server = service.server.model_copy(update={"drain_seconds": min(3.0, service.server.drain_seconds)})
    service = service.model_copy(update={"server": server})

    def ready(url: str, link: str) -> None:
        if as_json:
            emit_json({"url": f"{url}/studio/", "link": link, "runs": str(runs), "home": str(home)})
            sys.stdout.flush()
        note(f"{url}/studio/ shows the runs of {runs}; open this link, it works once:")
        note(f"  {link}")
        note("Ctrl-C stops the pages; runs go on")
        if open_browser:
            import webbrowser

            webbrowser.open(link)

    run_studio(settings, service, home=home.absolute(), ready=ready, workers=workers)
