"""`luthier`: parse, call, render. One thin file per verb; heavy imports happen inside the verbs.

Exit codes: 0 ok; 1 the run failed; 2 usage or recipe; 3 data; 4 environment; 5 out of memory; 6 access; 7 machine lost;
130 interrupted with a checkpoint to resume from.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from functools import cache
from typing import IO, Any, Protocol, runtime_checkable

import typer

from luthier.cli import (
    api,
    card,
    chat,
    compare,
    data,
    doctor,
    evaluate,
    export,
    init,
    jobs,
    launch,
    lr_find,
    merge,
    plan,
    push,
    quickstart,
    rerun,
    run,
    runs,
    schema,
    serve,
    spectrum,
    studio,
    sweep,
)
from luthier.cli.output import print_error, wants_json
from luthier.launch.here import stop_when_orphaned
from luthier.runtime.env import read_env
from luthier.runtime.errors import EnvironmentProblem, LuthierError, OutOfMemory, RecipeError
from luthier.runtime.failure import FOLLOW_UPS, leave_failure

__all__ = ["app", "main"]


@runtime_checkable
class UsageProblem(Protocol):
    """The parser's own errors (unknown command, missing argument), whichever click it is built on."""

    exit_code: int

    def show(self, file: IO[str] | None = None) -> None:
        """Print usage and message."""

    def format_message(self) -> str:
        """The message alone."""


app = typer.Typer(
    name="luthier",
    help="From raw examples to a fine-tuned, proven, served language model.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
TOGETHER = ("run", "train", "eval", "data synth")
"""Commands that several processes of a launcher run together."""
FOLLOW_UP_SECONDS = 5.0
OVERRIDES = {"ignore_unknown_options": True, "allow_extra_args": True}

START, STAGES, LOOK = "Start here", "Stages of a run", "Look"
app.command("quickstart", rich_help_panel=START)(quickstart.quickstart)
app.command("init", rich_help_panel=START)(init.init)
app.command("run", rich_help_panel=START, context_settings=OVERRIDES)(run.run)
app.command("plan", rich_help_panel=START, context_settings=OVERRIDES)(plan.plan)
app.add_typer(data.app, name="data", rich_help_panel=STAGES)
app.command("train", rich_help_panel=STAGES, context_settings=OVERRIDES)(run.train)
app.command("launch", rich_help_panel=STAGES, context_settings=OVERRIDES)(launch.launch)
app.command("lr-find", rich_help_panel=STAGES, context_settings=OVERRIDES)(lr_find.lr_find)
app.command("sweep", rich_help_panel=STAGES, context_settings=OVERRIDES)(sweep.sweep)
app.command("eval", rich_help_panel=STAGES, context_settings=OVERRIDES)(evaluate.evaluate)
app.command("spectrum", rich_help_panel=STAGES)(spectrum.spectrum)
app.command("compare", rich_help_panel=STAGES)(compare.compare)
app.command("merge", rich_help_panel=STAGES)(merge.merge)
app.command("export", rich_help_panel=STAGES)(export.export)
app.command("card", rich_help_panel=STAGES)(card.card)
app.command("push", rich_help_panel=STAGES)(push.push)
app.command("chat", rich_help_panel=STAGES)(chat.chat)
app.command("serve", rich_help_panel=STAGES)(serve.serve)
app.command("rerun", rich_help_panel=STAGES)(rerun.rerun)
app.add_typer(api.app, name="api", rich_help_panel=STAGES)
app.add_typer(jobs.app, name="jobs", rich_help_panel=LOOK)
app.command("studio", rich_help_panel=LOOK)(studio.studio)
app.add_typer(runs.app, name="runs", rich_help_panel=LOOK)
app.command("doctor", rich_help_panel=LOOK)(doctor.doctor)
app.command("schema", rich_help_panel=LOOK)(schema.schema)


def main() -> None:
    """Entry point of the command line: every error ends here, with its exit code."""
    # On some CPUs bitsandbytes logs at every import that an optional hub kernel is missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(_to_stderr)
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    stop_when_orphaned()
    try:
        _require_one_process(arguments)
        code = _command()(args=arguments, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except LuthierError as error:
        sys.exit(_report(error, arguments, debug))
    except MemoryError as error:
        sys.exit(_report(OutOfMemory(message=f"the machine's memory ran out: {error}", code="R750"), arguments, debug))
    except OSError as error:
        problem = EnvironmentProblem(
            message=f"{error.strerror or error}: {error.filename or 'no file named'}", code="R751"
        )
        sys.exit(_report(problem, arguments, debug))
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n")
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the last line of defence: one clear line instead of a trace
        sys.exit(_unexpected(error, arguments, debug))


@cache
def _command() -> Any:
    """All verbs with their options, read from the signatures once in a process; each takes about a millisecond."""
    return typer.main.get_command(app)


def _require_one_process(arguments: list[str]) -> None:
    """Under a launcher only what trains or scores may start; a command of another kind would run once a process."""
    env = read_env()
    processes = env.world_size
    words = [word for word in arguments if not word.startswith("-")]
    command = " ".join(words[: 2 if words[:1] == ["data"] else 1])
    if processes > 1 and command not in TOGETHER:
        raise RecipeError(
            code="L102",
            message=f"`luthier {command}` was started by a launcher with {processes} processes; it takes one",
            hint=f"start it without the launcher; only {', '.join(TOGETHER)} take several",
        )


def _report(error: LuthierError, arguments: list[str], debug: bool) -> int:
    if debug:
        traceback.print_exc()
    env = read_env()
    if env.world_size == 1:
        print_error(error, as_json=wants_json(arguments))
        return error.exit_code
    if all(problem.code in FOLLOW_UPS for problem in error.problems):
        # Another process failed first. Its launcher is about to end this one; the cause must not be this one's.
        time.sleep(FOLLOW_UP_SECONDS)
    leave_failure(error)
    if not env.launched:  # `luthier launch` prints it, last of all
        sys.stderr.write(f"process {env.rank}: {error.render()}\n")
    sys.stderr.flush()
    # Not `sys.exit`: threads of a process group that waits for a dead peer would keep this process.
    os._exit(error.exit_code)


def _unexpected(error: Exception, arguments: list[str], debug: bool) -> int:
    if isinstance(error, UsageProblem):
        if wants_json(arguments):
            usage = RecipeError(message=error.format_message(), code="C122", hint="`luthier --help` lists the commands")
            return _report(usage, arguments, debug)
        error.show(sys.stderr)
        return 2
    if debug:
        traceback.print_exc()
    failure = LuthierError(
        message=f"unexpected {type(error).__name__}: {error}",
        code="R799",
        hint="this is a fault in Luthier: run again with --debug and report the trace",
    )
    return _report(failure, arguments, debug=False)


def _to_stderr(record: logging.LogRecord) -> bool:
    """DeepSpeed logs to stdout, from its import on (which accelerate makes): there a reader of JSON finds it.

    That it sees no accelerator is left out: it is no news on a CPU, and puzzles in a run that does not use DeepSpeed.
    """
    text = record.getMessage()
    if not text.startswith("Setting accelerator to CPU"):
        print(f"{record.name}: {text}", file=sys.stderr)
    return False


if __name__ == "__main__":
    main()
