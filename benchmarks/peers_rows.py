"""The same odd rows through Luthier, TRL, Axolotl and LLaMA-Factory: what each makes of them, as a markdown table.

python benchmarks/peers_rows.py                                     Luthier and TRL
python benchmarks/peers_rows.py --axolotl DIR --llamafactory DIR    the others too, from their unpacked wheels

Each case is a file of three rows: a good one, the odd one, a good one. Every tool reads the file as its users do (TRL,
Axolotl and LLaMA-Factory through `datasets.load_dataset("json")`) and prepares it with its own code for a tiny
tokenizer with the chat template of Qwen2.5, 768 tokens at most. What stands in the table is read off the labels:
⏹ is a control token of the tokenizer, `<|im_end|>` the text.
DIR is a folder with the package in it: `pip download --no-deps axolotl==0.19.0`, then unzip; `--site DIR` for what they
import (`pip install --no-deps --target DIR addict`). What they import for other things than rows is a stand-in (STUBS).
"""

from __future__ import annotations

import argparse
import importlib.machinery
import io
import json
import logging
import os
import re
import sys
import tempfile
import types
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.peers_rows_cases import CASES, GOOD, PAIRS, Case
from benchmarks.peers_rows_tools import TOOLS, tokenizer

STUBS = ("torchaudio", "posthog", "numba")
LINE = re.compile(r"\.jsonl:2\b|\brow 2\b|\bline 2\b|\brow 1\b")  # rows of Arrow count from 0


@dataclass
class Outcome:
    """What became of the odd row."""

    what: str
    """trains, keeps (nothing trained), drops, refuses (naming the line), stops (the run, without a line)."""
    detail: str
    told: str = "silently"
    """Of a dropped row: silently, counted, or named."""
    forged: bool = False
    """Text of the row became control tokens: it can end turns and begin others."""

    def cell(self) -> str:
        if self.what == "drops":
            return "dropped, " + {"silently": "**silently**", "counted": "counted", "named": "named"}[self.told]
        text = {"trains": "trains ", "keeps": "kept, nothing trained", "refuses": "refuses, names the line: ",
                "stops": "stops the run, no line: "}[self.what]  # fmt: skip
        text += "" if self.what == "keeps" else f"`{_short(self.detail)}`"
        return text + ("; its text **became control tokens**" if self.forged else "")


def _short(text: str, width: int = 110) -> str:
    text = text.strip().replace("|", "\\|").replace("`", "'").replace("\n", "⏎")
    text = re.sub(r"/\S*/(\S+)", r"\1", text)
    return text if len(text) <= width else text[: width - 1] + "…"


# --- one case --------------------------------------------------------------------------------------------------------


def run_case(tool: str, case: Case) -> Outcome:
    """Prepare the file with a tool and find out what became of its second row."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    names = ("llamafactory", "axolotl", "trl", "transformers", "datasets")
    loggers = [logging.getLogger(), *map(logging.getLogger, names)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{case.ending}"
        good = PAIRS if case.pairs else GOOD
        path.write_text("\n".join([case.good or good[0], case.text, case.good or good[1]]) + "\n", encoding="utf-8")
        for logger in loggers:
            logger.addHandler(handler)
        try:
            with redirect_stdout(heard), redirect_stderr(heard), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                rows = TOOLS[tool](path, case)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - what the tool raises is what is measured
            message = _deepest(error)
            return Outcome("refuses" if LINE.search(f"{error} {message}") else "stops", message)
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
    if len(rows) < 3:
        said = [line for line in heard.getvalue().splitlines() if re.search(r"(?i)dropp|skipp|invalid", line)]
        named = any(LINE.search(line) or "content" in line or "'value'" in line or "blank" in line for line in said)
        return Outcome("drops", " / ".join(said), told="named" if named else "counted" if said else "silently")
    trained, ids = rows[1]
    forged = case.turns is not None and ids.count(tokenizer().convert_tokens_to_ids("<|im_end|>")) > case.turns
    return Outcome("trains" if trained.strip() else "keeps", trained, forged=forged)


def _deepest(error: BaseException) -> str:
    """The message of an error with that of its cause: `datasets` wraps what really happened."""
    text = str(error).strip().splitlines()
    head = next((line for line in text if line.strip()), "")
    cause = error.__cause__
    first = str(cause).strip().splitlines()[:1] if cause is not None else []
    inner = f" <- {type(cause).__name__}: {first[0]}" if first else ""
    return f"{'' if type(error).__name__ == 'DataError' else type(error).__name__ + ': '}{head}{inner}"


def table(results: dict[str, dict[str, Outcome]], tools: list[str]) -> str:
    lines = ["| odd row | " + " | ".join(tools) + " |", "|---|" + "---|" * len(tools)]
    for case in CASES:
        cells = [results[case.name][tool].cell() for tool in tools]
        lines.append(f"| {case.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axolotl", help="folder with the package `axolotl`")
    parser.add_argument("--llamafactory", help="folder with the package `llamafactory`")
    parser.add_argument("--site", help="folder with further packages they import")
    parser.add_argument("--only", help="regular expression of case names")
    parser.add_argument("--json", type=Path, help="write every outcome in full")
    chosen = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", AXOLOTL_DO_NOT_TRACK="1",
                      DISABLE_VERSION_CHECK="1", TOKENIZERS_PARALLELISM="false")  # fmt: skip
    for folder in (chosen.axolotl, chosen.llamafactory):
        if folder:
            sys.path.insert(0, folder)
    if chosen.site:
        sys.path.append(chosen.site)
    for name in STUBS if chosen.axolotl or chosen.llamafactory else ():
        stub: Any = MagicMock() if name != "torchaudio" else types.ModuleType(name)
        stub.__spec__, stub.__version__ = importlib.machinery.ModuleSpec(name, None), "0"
        sys.modules.setdefault(name, stub)
    tools = ["Luthier", "TRL"] + ["Axolotl"] * bool(chosen.axolotl) + ["LLaMA-Factory"] * bool(chosen.llamafactory)
    results: dict[str, dict[str, Outcome]] = {}
    wrong = []
    for case in list(CASES):
        if chosen.only and not re.search(chosen.only, case.name):
            CASES.remove(case)
            continue
        results[case.name] = {tool: run_case(tool, case) for tool in tools}
        got = results[case.name]["Luthier"]
        if got.what != case.right or not re.search(case.says, got.detail) or got.forged or got.told == "counted":
            wrong.append(f"{case.name}: expected {case.right} /{case.says}/, got {got.what}: {got.detail}")
        print(case.name, file=sys.stderr)
    print(table(results, tools))
    if chosen.json:
        values = {name: {tool: vars(one) for tool, one in row.items()} for name, row in results.items()}
        chosen.json.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    if wrong:
        sys.exit("Luthier is not as it should be:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
