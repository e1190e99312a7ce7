"""Slurm: one launcher a node through `srun`, which meet at the first host."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from luthier.launch.settings import LaunchSettings
from luthier.launch.shell import comment
from luthier.launch.slurm import directives_of
from luthier.launch.task import Spec

__all__ = ["slurm_file"]


def slurm_file(spec: Spec, settings: LaunchSettings, *, nodes: int, head: Sequence[str]) -> str:
    """The batch script; `head` stands above the directives.

    SIGUSR1 comes to the batch shell before the time limit. It tells every launcher to save and end (SIGTERM to the
    steps: `scancel --signal` leaves the batch shell alone), then puts the job in line again. What `scancel` or a
    preemption sends goes to the launchers by itself, so the shell only waits for them. `srun` of a job that inherits
    nothing needs `--export=ALL`, and does not take `--cpus-per-task` from the job.
    """
    quote = shlex.quote
    exports = [f"export {name}={quote(value)}" for name, value in sorted(spec.environment.items())]
    step = [
        "srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1",
        f"--cpus-per-task={spec.resources.cpus}", "--export=ALL", "--kill-on-bad-exit=0",
    ]  # fmt: skip
    launcher = [*spec.command, "--nodes", str(nodes)]
    each = 'exec "$@" --node-rank "$SLURM_NODEID" --rendezvous "$0"'
    directives = [*directives_of(spec, settings, nodes=nodes), "--ntasks-per-node=1", "--export=ALL"]
    directives.append(f"--output={spec.name}-%j.log")
    lines = [
        "#!/bin/bash",
        *head,
        *(f"#SBATCH {directive}" for directive in directives),
        f"cd -- {quote(str(spec.folder))} || exit 4",
        *exports,
        *settings.slurm.setup,
        comment("Machine 0 is the first host; a port that another job does not have."),
        'host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        '[ -n "$host" ] || { echo "scontrol names no host of $SLURM_JOB_NODELIST" >&2; exit 4; }',
        "port=$((20000 + SLURM_JOB_ID % 10000))",
        "again=",
        comment("Before the time limit: all save together and end, then the job waits in line again."),
        "trap 'again=1; scancel --signal=TERM \"$SLURM_JOB_ID\"' USR1",
        comment("Slurm sends SIGTERM to the launchers too: only wait for them."),
        "trap : TERM",
        f"{shlex.join(step)} \\",
        f'  bash -c {quote(each)} "$host:$port" \\',
        f"  {shlex.join(launcher)} < /dev/null &",
        "child=$!",
        "code=0",
        'wait "$child" || code=$?',
        'while kill -0 "$child" 2>/dev/null; do code=0; wait "$child" || code=$?; done',
        'if [ -n "$again" ] && [ "$code" -eq 130 ]; then scontrol requeue "$SLURM_JOB_ID" && exit 0; fi',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"
