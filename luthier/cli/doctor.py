"""`luthier doctor`: what this machine can do, and the command that mends what it cannot."""

from __future__ import annotations

from luthier.cli.common import JsonOption
from luthier.cli.output import emit_json, show


def doctor(as_json: JsonOption = False) -> None:
    """Check devices, libraries, disk and the embedded model; each red line carries its fix."""
    from luthier.pipeline.doctor import examine

    checks = examine()
    if as_json:
        emit_json({"ok": all(check.ok for check in checks), "checks": [check.to_json() for check in checks]})
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "what", "found", "fix", box=None, pad_edge=False)
    for check in checks:
        state = "[green]ok[/]" if check.ok else "[red]no[/]"
        table.add_row(state, escape(check.name), escape(check.found), "" if check.ok else escape(check.fix))
    show(table)
