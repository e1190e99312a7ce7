"""SkyPilot: the run section starts on each machine, with SKYPILOT_NODE_RANK and SKYPILOT_NODE_IPS."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from luthier.launch.settings import LaunchSettings
from luthier.launch.skypilot import resources_for
from luthier.launch.task import Spec
from luthier.recipe.emit import dump_yaml

__all__ = ["skypilot_file"]

PORT = 29500


def skypilot_file(spec: Spec, settings: LaunchSettings, *, nodes: int, uploads: Sequence[str]) -> str:
    """The task file; `uploads` go to the same paths on each machine unless a bucket holds them."""
    sky = settings.skypilot
    mounts: dict[str, object] = {
        path: {"source": source, "mode": "MOUNT"} for path, source in sorted(sky.mounts.items())
    }
    mounts |= {path: path for path in uploads if not any(_below(path, bucket) for bucket in sky.mounts)}
    return dump_yaml({
        "name": spec.name,
        "resources": resources_for(spec, settings),
        "num_nodes": nodes,
        **({"file_mounts": mounts} if mounts else {}),
        **({"setup": "\n".join(sky.setup) + "\n"} if sky.setup else {}),
        "run": "\n".join(_run_lines(spec, nodes=nodes)) + "\n",
    }, blocks=True)  # fmt: skip


def _run_lines(spec: Spec, *, nodes: int) -> list[str]:
    quote = shlex.quote
    folder = quote(str(spec.folder))
    return [
        f"mkdir -p -- {folder} && cd -- {folder} || exit 4",
        *(f"export {name}={quote(value)}" for name, value in sorted(spec.environment.items())),
        'host=$(printf "%s\\n" "$SKYPILOT_NODE_IPS" | head -n 1)',
        f"exec {shlex.join(spec.command)} --nodes {nodes} \\",
        f'  --node-rank "$SKYPILOT_NODE_RANK" --rendezvous "$host:{PORT}"',
    ]


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
