"""Commands as forks of one process that has the libraries loaded already: for planting bugs in minutes.

Only third-party libraries are loaded here, nothing of luthier: each child imports luthier itself, parses
its arguments and ends with its own exit code, as `python -m luthier` does. One request a line on stdin
(JSON), one answer a line on stdout. The suite uses it with `--fork`; without, every command is a new
interpreter.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any


def serve() -> None:
    """Answer requests until stdin ends."""
    import accelerate
    import bitsandbytes
    import peft
    import safetensors.torch
    import torch
    import transformers
    import transformers.models.llama.modeling_llama

    del accelerate, bitsandbytes, peft, safetensors, torch, transformers
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os._exit(_child(request))
        _, status, used = os.wait4(pid, 0)
        answer = {"code": os.waitstatus_to_exitcode(status), "cpu": used.ru_utime + used.ru_stime}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _child(request: dict[str, Any]) -> int:
    for number, name in enumerate(("/dev/null", request["out"], request["err"])):
        handle = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(handle, number)
    os.environ.update(request["env"])
    if request["file_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
    if request["plan"]:
        from tests.acceptance.driver import install

        install(request["plan"])
    sys.argv = ["luthier", *request["arguments"]]
    code = 0
    try:
        from luthier.cli.main import main

        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter would
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve()
