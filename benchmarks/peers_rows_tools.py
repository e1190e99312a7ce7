"""Each tool: a file -> its rows as they would be trained, in order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.peers_rows_cases import Case

__all__ = ["MAX_LENGTH", "TOOLS", "tokenizer"]

MAX_LENGTH = 768


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
