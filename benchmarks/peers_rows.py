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
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.peers_rows_cases import CASES, GOOD, PAIRS, Case

MAX_LENGTH = 768
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


# --- each tool: file -> its rows as they would be trained, in order ---------------------------------------------------


def tokenizer() -> Any:
    import trl

    from tests.support.tiny import tiny_tokenizer

    template = Path(trl.__file__).parent / "chat_templates" / "qwen2_5.jinja"
    return tiny_tokenizer(chat_template=template.read_text("utf-8"))


Prepared = list[tuple[str, list[int]]]
"""Of each row that is left: the trained text, and all ids of the sequence."""


def show(own: Any, ids: Any) -> str:
    """Text of ids, control tokens as ⏹."""
    pieces: list[str] = []
    run: list[int] = []
    for token in [*ids, None]:
        if token is None or token in own.all_special_ids:
            pieces.append(own.decode(run))
            pieces.append("⏹" if token is not None else "")
            run = []
        else:
            run.append(token)
    return "".join(pieces)


def ours(path: Path, case: Case) -> Prepared:
    from luthier.data.prepare import prepare
    from luthier.recipe.schema import DataSection

    own = tokenizer()
    section = DataSection(train=[{"path": str(path)}], max_length=MAX_LENGTH)
    prepared = prepare(section, own, seed=0, kind="pairs" if case.pairs else "tokens", cache_dir=None)
    for row in prepared.manifest["dropped_rows"]:
        print("dropped:", row)  # as the manifest and `data show` list them
    for source in prepared.manifest["sources"]:
        print("dropped:", source.get("notes"))
    found: Prepared = []
    for row in prepared.train:
        if case.pairs:
            sides = [show(own, [t for t, w in zip(ids, weights, strict=True) if w])
                     for ids, weights in zip(row.answers, row.weights, strict=True)]  # fmt: skip
            found.append((" ‖ ".join(sides), [*row.prompt, *row.answers[0]]))
        else:
            trained = [token for token, weight in zip(row.ids, row.weights, strict=True) if weight]
            found.append((show(own, trained), list(row.ids)))
    return found


def with_trl(path: Path, case: Case) -> Prepared:
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    from tests.support.tiny import save_tiny, tiny_model

    own, data = tokenizer(), _loaded(path)
    common = {"output_dir": str(path.parent / "trl"), "use_cpu": True, "bf16": False, "report_to": "none",
              "max_length": MAX_LENGTH, "disable_tqdm": True, "gradient_checkpointing": False}  # fmt: skip
    if case.pairs:
        model = str(save_tiny(path.parent / "tiny"))  # the trainer loads its reference from the same folder
        trainer: Any = DPOTrainer(model=model, args=DPOConfig(**common), train_dataset=data, processing_class=own)
        return [
            (" ‖ ".join(show(own, row[key]) for key in ("chosen_ids", "rejected_ids")),
             [*row["prompt_ids"], *row["chosen_ids"]])
            for row in trainer.train_dataset
        ]  # fmt: skip
    # Turns of `from` and `value` are no conversation to `assistant_only_loss`, though they are read as one.
    loss = {"assistant_only_loss": True} if "conversations" not in case.text else {}
    trainer = SFTTrainer(model=tiny_model(), args=SFTConfig(**common, **loss), train_dataset=data, processing_class=own)
    found: Prepared = []
    for row in trainer.train_dataset:
        labels = trainer.data_collator([row])["labels"][0].tolist()
        found.append((show(own, [token for token in labels if token != -100]), list(row["input_ids"])))
    return found


def with_axolotl(path: Path, case: Case) -> Prepared:
    from axolotl.prompt_strategies.chat_template import load
    from axolotl.prompt_strategies.dpo.chat_template import default
    from axolotl.utils.dict import DictDefault

    own, data = tokenizer(), _loaded(path)
    entry = {"type": "chat_template", "field_messages": "conversations" if "conversations" in case.text else "messages"}
    if entry["field_messages"] == "conversations":
        entry["message_property_mappings"] = {"role": "from", "content": "value"}
    if '"weight"' in case.text or '"train"' in case.text:  # its way to say what is trained
        entry["message_field_training"] = "train"
    cfg = DictDefault({"sequence_len": MAX_LENGTH, "train_on_inputs": False, "chat_template": "tokenizer_default",
                       "min_sample_len": 2, "dataset_num_proc": 1, "is_preprocess": True})  # fmt: skip
    if case.pairs:
        from axolotl.utils.data.rl import RLType, _drop_long_sequences

        cfg["datasets"] = [DictDefault({"type": "chat_template.default", "field_messages": "prompt"})]
        transform, _ = default(cfg)
        rows = data.map(lambda row: transform(row, tokenizer=own))
        rows = rows.filter(lambda row: _drop_long_sequences(row, RLType.DPO, own, MAX_LENGTH))
        ids = [{key: own(row[key], add_special_tokens=False)["input_ids"] for key in ("prompt", "chosen", "rejected")}
               for row in rows]  # fmt: skip
        return [(f"{show(own, row['chosen'])} ‖ {show(own, row['rejected'])}", [*row["prompt"], *row["chosen"]])
                for row in ids]  # fmt: skip
    from axolotl.datasets import TokenizedPromptDataset
    from axolotl.utils.data.utils import handle_long_seq_in_dataset
    from axolotl.utils.trainer import process_datasets_for_packing

    strategy = load(own, cfg, entry)
    rows = handle_long_seq_in_dataset(TokenizedPromptDataset(strategy, data, process_count=1), MAX_LENGTH, cfg)
    rows, _ = process_datasets_for_packing(cfg, rows, None)
    return [(show(own, [token for token in row["labels"] if token != -100]), list(row["input_ids"])) for row in rows]


def with_llamafactory(path: Path, case: Case) -> Prepared:
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import DataArguments, ModelArguments
    from transformers import Seq2SeqTrainingArguments

    own = tokenizer()
    openai = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
              "system_tag": "system", "observation_tag": "tool"}  # fmt: skip
    field = "conversations" if "conversations" in case.text else "prompt" if case.pairs else "messages"
    info: dict[str, Any] = {"file_name": path.name, "formatting": "sharegpt", "columns": {"messages": field}}
    if field != "conversations":
        info["tags"] = openai
    if case.pairs:
        info |= {"ranking": True, "columns": {"messages": "prompt", "chosen": "chosen", "rejected": "rejected"}}
        # Its layout: one answer is an object, not a list of one.
        path.write_text("".join(_one_answer(line) + "\n" for line in path.read_text("utf-8").splitlines()), "utf-8")
    if "tools" in case.text or "tool_calls" in case.text:
        info["formatting"] = "openai"  # `sharegpt` knows calls only as turns of a role of their own
        info["columns"]["tools"] = "tools"
    (path.parent / "dataset_info.json").write_text(json.dumps({"odd": info}))
    data_args = DataArguments(dataset="odd", dataset_dir=str(path.parent), template="qwen", cutoff_len=MAX_LENGTH,
                              overwrite_cache=True, preprocessing_num_workers=None)  # fmt: skip
    training = Seq2SeqTrainingArguments(output_dir=str(path.parent / "lf"), use_cpu=True, report_to="none")
    template = get_template_and_fix_tokenizer(own, data_args)
    model = ModelArguments(model_name_or_path="none")
    module = get_dataset(template, model, data_args, training, stage="rm" if case.pairs else "sft", tokenizer=own)
    keys = ("chosen_labels", "rejected_labels") if case.pairs else ("labels",)
    return [
        (" ‖ ".join(show(own, [token for token in row[key] if token != -100]) for key in keys),
         row["chosen_input_ids" if case.pairs else "input_ids"])
        for row in module["train_dataset"]
    ]  # fmt: skip


def _one_answer(line: str) -> str:
    row = json.loads(line)
    for name in ("chosen", "rejected"):
        if isinstance(row[name], list) and len(row[name]) == 1:
            row[name] = row[name][0]
    return json.dumps(row, ensure_ascii=False)


def _loaded(path: Path) -> Any:
    from datasets import load_dataset

    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(path.parent / "cache"))


TOOLS: dict[str, Callable[[Path, Case], Prepared]] = {
    "Luthier": ours,
    "TRL": with_trl,
    "Axolotl": with_axolotl,
    "LLaMA-Factory": with_llamafactory,
}


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
