"""`luthier data synth`: rows made by a model, by a spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.common import JsonOption, OverridesArgument, split_overrides
from luthier.cli.launch import ProcessesOption
from luthier.cli.on_processes import on_processes
from luthier.cli.output import emit_json, show
from luthier.runtime.console import note
from luthier.runtime.env import read_env

if TYPE_CHECKING:
    from luthier.synthesis.run import Files
    from luthier.synthesis.spec import SynthSpec
    from luthier.train.distributed.group import Group

__all__ = ["synth"]

_UNSOLVED_SHOWN = 10
GpusOption = Annotated[
    int | None,
    typer.Option("--num-gpus", min=1, help="Processes that sample with a local model, one for each GPU. Default: 1."),
]


def synth(
    spec: Annotated[Path, typer.Argument(help="Spec (YAML), see docs/synthesis.md.", show_default=False)],
    overrides: OverridesArgument = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File for the rows (.jsonl); wins over `out`.")
    ] = None,
    distiset: Annotated[
        Path | None, typer.Option(help="Also write the rows as a distiset, the folder of distilabel.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a file that no journal accounts for, or the distiset.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask and write nothing; show what would be asked.")
    ] = False,
    num_gpus: GpusOption = None,
    num_processes: ProcessesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make rows with a model: from seeds or documents, by evolution or rejection sampling. Run it again to go on."""
    from luthier.synthesis.load import load_spec
    from luthier.synthesis.run import Files, plan, require_ready

    loaded = load_spec(spec, split_overrides(overrides or []))
    if dry_run:
        value = plan(loaded)
        if as_json:
            emit_json(value)
        else:
            for line in _plan_lines(value):
                show(line)
        return
    files = Files.of(loaded, out)
    if read_env().rank == 0:
        require_ready(loaded, files, force=force)
        if distiset is not None:
            from luthier.synthesis.distiset import check_distiset

            check_distiset(distiset, force=force)

    def work(group: Group) -> None:
        _make(loaded, files, distiset, force=force, as_json=as_json, group=group)

    on_processes(work, num_gpus=num_gpus, num_processes=num_processes, local=loaded.local is not None)


def _make(spec: SynthSpec, files: Files, distiset: Path | None, *, force: bool, as_json: bool, group: Group) -> None:
    """Process 0 makes, writes and shows the rows; the others sample for it."""
    from luthier.synthesis.distiset import write_distiset
    from luthier.synthesis.run import synthesize
    from luthier.synthesis.sampler import Sampler, Together

    together = None if spec.local is None else Together(Sampler(spec.local), group.spread("synth"))
    if not group.is_main:
        assert together is not None
        together.help()
        return
    told = synthesize(spec, files, force=force, together=together)
    if distiset is not None and told["rows"]:
        lines = Path(told["out"]).read_text("utf-8").rstrip("\n").split("\n")  # not splitlines: U+2028 is one
        write_distiset([json.loads(line) for line in lines], distiset)
    if as_json:
        emit_json(told)
        return
    for line in summary_lines(told):
        show(line)
    if not told["rows"]:
        note(f"no row was made; {told['out'].removesuffix('.jsonl')}.rejected.jsonl says why", style="yellow")


def _plan_lines(value: dict[str, Any]) -> list[Any]:
    from rich.text import Text

    fewest, most = value["requests"]
    count = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    lines: list[Any] = [f"{name.replace('_', ' ')}: {_shown(item)}" for name, item in value["source"].items() if item]
    lines.append(f"requests: {count}, repairs and a judge's not counted; at most "
                 f"{value['most_completion_tokens']:,} completion tokens")  # fmt: skip
    if "most_usd_for_completions" in value:
        lines.append(f"at most ${value['most_usd_for_completions']:.2f} for them; prompts cost beside that")
    lines.append("the first request:")
    return lines + [Text(f"[{message['role']}] {message['content']}") for message in value["first_request"]]


def _shown(item: Any) -> str:
    if isinstance(item, dict):
        return ", ".join(f"{name} {count}" for name, count in item.items())
    return "; ".join(map(str, item)) if isinstance(item, list) else f"{item:,}"


def summary_lines(told: dict[str, Any]) -> list[str]:
    """Counts by outcome, tokens and money."""
    from luthier.synthesis.asking import OUTCOMES

    lines = [f"{told['out']}: {told['rows']:,} rows"]
    lines += [f"  {name}: {count:,}  ({OUTCOMES[name]})" for name, count in told["outcomes"].items()]
    source = told["source"]
    if "rate" in source:
        low, high = source["rate_interval"]
        lines.append(f"accepted: {source['accepted']:,} of {source['answers_scored']:,} answers, {source['rate']:.1%} "
                     f"(95% interval {low:.1%} to {high:.1%}); solved: {source['solved']:,} of "
                     f"{source['prompts']:,} prompts")  # fmt: skip
        unsolved = source["unsolved"]
        more = (
            f"and {len(unsolved) - _UNSOLVED_SHOWN:,} more: OUT.prompts.jsonl has all"
            if len(unsolved) > _UNSOLVED_SHOWN
            else ""
        )
        lines += ["unsolved:", *(f"  {name}" for name in unsolved[:_UNSOLVED_SHOWN])] if unsolved else []
        lines += [f"  {more}"] if more else []
    lines += [f"note: {text}" for text in source.get("notes", [])]
    for name, server in told["servers"].items():
        money = f", ${server['cost_usd']:.4f}" if server["cost_usd"] is not None else ""
        lines.append(f"{name}: {server['prompt_tokens']:,} prompt and {server['completion_tokens']:,} completion "
                     f"tokens in all{money}")  # fmt: skip
    asked = f"{told['answers_new']:,} answers asked for, {told['answers_in_journal']:,} in the journal"
    return [*lines, f"{asked}; {told['seconds']:.1f} s"]
