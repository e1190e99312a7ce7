"""An Ollama Modelfile beside a GGUF file: `ollama create NAME -f Modelfile`.

Ollama renders conversations with templates in Go. Only one is written here, ChatML, and only if it gives what the
tokenizer's own template gives for the talks tried; a default system message of the template becomes SYSTEM. For other
templates none is written, and Ollama chooses one by the template in the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.export.gguf.check import TALKS, render
from luthier.model.stops import stop_ids
from luthier.runtime.atomic import write_text
from luthier.runtime.console import note

__all__ = ["write_modelfile"]

_CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
_DEFAULT = re.compile(r"\A<\|im_start\|>system\n(.*?)<\|im_end\|>\n<\|im_start\|>user\n", re.DOTALL)


def write_modelfile(folder: Path, file: Path) -> Path:
    """Write `Modelfile` beside the file; its path.

    Args:
        folder: Merged model, for tokenizer and stop tokens.
        file: The GGUF file.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    stops = tokenizer.convert_ids_to_tokens(stop_ids(tokenizer, AutoConfig.from_pretrained(folder)))
    lines = [f"FROM ./{file.name}"]
    system = _chatml_system(tokenizer)
    if system is None:
        note("  Modelfile: no template is written; Ollama chooses one by that in the file", style="yellow")
    else:
        lines.append(f'TEMPLATE """{_CHATML}"""')
        lines += [f'SYSTEM """{system}"""'] if system else []
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    path = file.with_name("Modelfile")
    write_text(path, "\n".join(lines) + "\n")
    return path


def _chatml_system(tokenizer: Any) -> str | None:
    """The template's default system message, empty without one; None if it is not ChatML."""
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return None
    try:
        found = _DEFAULT.match(render(tokenizer, TALKS[0]))
        system = found.group(1) if found else ""
        alike = all(render(tokenizer, talk) == _chatml(talk, system) for talk in TALKS)
    except TemplateError:  # it refuses a talk, which ChatML does not
        return None
    return system if alike and '"""' not in system else None


def _chatml(talk: Sequence[dict[str, str]], system: str) -> str:
    """What the Go template gives: Ollama puts SYSTEM in front of talks that have none."""
    all_turns = list(talk)
    if system and all_turns[0]["role"] != "system":
        all_turns.insert(0, {"role": "system", "content": system})
    turns = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in all_turns)
    return turns + "<|im_start|>assistant\n"
