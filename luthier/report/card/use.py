"""How to use the model, and what is needed to make it again: the last two sections of a card."""

from __future__ import annotations

import shlex
from typing import Any

from luthier.report.card.facts import CardFacts
from luthier.report.card.text import bullets, code, fence, percent, plain, table
from luthier.runtime.scrub import scrub, scrub_path

__all__ = ["reproduce", "use", "vllm_rank"]

PLACE = "PATH_OF_THIS_FOLDER"
_LUTHIER = """luthier chat RUN --side-by-side   # beside its base
luthier serve RUN                 # an OpenAI-compatible server"""
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for --max-lora-rank."""


def use(facts: CardFacts) -> str:
    """Commands and code, for what the folder holds."""
    here = facts.repo_id or PLACE
    base = facts.base.hub_id or "PATH_OF_THE_BASE"
    parts = ["## Use"]
    if not facts.repo_id:
        parts.append(f"Put the folder of this file (or its id on the Hub) for {code(here)}.")
    if facts.objective == "reward":
        return "\n\n".join([*parts, fence(_reward_code(facts, here, base), "python")])
    if facts.kind == "gguf":
        file = shlex.quote(str(facts.gguf[0].get("file", "FILE.gguf"))) if facts.gguf else "FILE.gguf"
        command = f"llama-server -m {file} --jinja --alias {_alias(facts)}"
        return "\n\n".join(
            [*parts, "An OpenAI-compatible server, with llama.cpp:", fence(command, "sh"), _files(facts)]
        )
    parts.append(fence(_python(facts, here, base), "python"))
    parts += _vllm(facts, here, base)
    parts.append("With Luthier, from the folder of the run:")
    parts.append(fence(_LUTHIER, "sh"))
    return "\n\n".join(parts)


def _files(facts: CardFacts) -> str:
    """What each file costs and keeps; measured by reading it back."""
    head = ("file", "bits a weight", "MB", "KL to the merged model, nats", "same most likely token")
    rows = (
        (code(item.get("file", "")), f"{item['bits_per_weight']:.1f}", f"{item['bytes'] / 1e6:,.0f}",
         f"{item['kl']:.2g}", percent(item["same_choice"]))
        for item in facts.gguf
        if {"bits_per_weight", "bytes", "kl", "same_choice"} <= set(item)
    )  # fmt: skip
    return table(head, rows)


def _python(facts: CardFacts, here: str, base: str) -> str:
    revision = f", revision={facts.base.revision!r}" if facts.base.revision else ""
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    lines.append(f"tokenizer = AutoTokenizer.from_pretrained({here!r})")
    if facts.kind == "adapter":
        lines[0] = "from peft import PeftModel\n" + lines[0]
        lines.append(
            f'base = AutoModelForCausalLM.from_pretrained({base!r}{revision}, dtype="auto", device_map="auto")'
        )
        lines.append(f"model = PeftModel.from_pretrained(base, {here!r})")
    else:
        lines.append(f'model = AutoModelForCausalLM.from_pretrained({here!r}, dtype="auto", device_map="auto")')
    if facts.chat:
        kwargs = "".join(f", {key}={value!r}" for key, value in _template_kwargs(facts).items())
        lines += [
            'messages = [{"role": "user", "content": "..."}]',
            "inputs = tokenizer.apply_chat_template(",
            f'    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{kwargs}',
            ").to(model.device)",
        ]
    else:
        lines.append('inputs = tokenizer("...", return_tensors="pt").to(model.device)')
    lines += [
        "output = model.generate(**inputs, max_new_tokens=256)",
        'print(tokenizer.decode(output[0][inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
    ]
    return "\n".join(lines)


def _template_kwargs(facts: CardFacts) -> dict[str, Any]:
    value = facts.recipe.get("model", {}).get("chat_template_kwargs", {})
    found = value if isinstance(value, dict) else {}
    return {str(key): item for key, item in found.items() if str(key).isidentifier() and _simple(item)}


def _simple(value: object) -> bool:
    return isinstance(value, bool | int | float | str)


def _reward_code(facts: CardFacts, here: str, base: str) -> str:
    load = f"AutoModelForSequenceClassification.from_pretrained({here!r}, num_labels=1)"
    lines = ["from transformers import AutoModelForSequenceClassification, AutoTokenizer", ""]
    lines.append(f"tokenizer = AutoTokenizer.from_pretrained({here!r})")
    if facts.kind == "adapter":
        lines.insert(0, "from peft import PeftModel")
        base_call = f"AutoModelForSequenceClassification.from_pretrained({base!r}, num_labels=1)"
        load = f"PeftModel.from_pretrained({base_call}, {here!r})"
    return "\n".join([*lines, f"model = {load}"])


def _vllm(facts: CardFacts, here: str, base: str) -> list[str]:
    """vLLM serves plain LoRA; what it cannot load as an adapter is named, with the way round."""
    if facts.kind != "adapter":
        return ["An OpenAI-compatible server, with vLLM:", fence(f"vllm serve {shlex.quote(here)}", "sh")]
    why = vllm_refuses(facts.files)
    if why:
        return [f"vLLM cannot serve this adapter ({plain(why)}): serve the merged model (`luthier merge RUN`)."]
    rank = vllm_rank(int(facts.files.get("r") or 16))
    command = (f"vllm serve {shlex.quote(base)} --enable-lora --max-lora-rank {rank} \\\n"
               f"  --lora-modules {_alias(facts)}={shlex.quote(here)}")  # fmt: skip
    return [f"An OpenAI-compatible server, with vLLM; ask for the model {code(_alias(facts))}:", fence(command, "sh")]


def vllm_refuses(config: dict[str, Any]) -> str | None:
    """Why vLLM cannot load an adapter with this adapter_config.json; None: nothing speaks against it."""
    if config.get("use_dora"):
        return "DoRA"
    if config.get("modules_to_save"):
        return "modules trained in full beside the adapter"
    if config.get("trainable_token_indices"):
        return "token rows trained beside the adapter"
    return None if int(config.get("r") or 16) <= _RANKS[-1] else f"rank {config['r']}"


def vllm_rank(rank: int) -> int:
    """Smallest value of --max-lora-rank that holds a rank."""
    return next((value for value in _RANKS if value >= rank), _RANKS[-1])


def _alias(facts: CardFacts) -> str:
    name = (facts.repo_id or facts.run.path.resolve().name).rsplit("/", 1)[-1]
    return "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name)


def reproduce(facts: CardFacts) -> str:
    """Versions, hardware, hashes, seeds, the command."""
    manifest = facts.run.manifest
    versions = manifest.get("versions") or {}
    hardware = manifest.get("hardware") or {}
    lines = []
    if versions:
        lines.append(
            "Versions: " + ", ".join(f"{plain(name)} {plain(value)}" for name, value in versions.items()) + "."
        )
    commit = (manifest.get("code") or {}).get("commit")
    if commit:
        changed = ", with uncommitted changes" if manifest["code"].get("uncommitted_changes") else ""
        lines.append(f"Luthier's commit: {code(commit)}{changed}.")
    if hardware:
        lines.append(f"Hardware: {_hardware(hardware)}.")
    if manifest.get("seed") is not None:
        lines.append(f"Seed: {manifest['seed']}.")
    if manifest.get("command"):
        words = [scrub_path(str(word)) for word in manifest["command"]]
        lines.append(f"Command: {code(scrub(shlex.join(words)))}.")
    several = (facts.run.train.get("processes") or 1) > 1
    once = " in one process (equal up to rounding, where a step is the same)" if several else ""
    lines.append(f"`luthier rerun RUN` repeats the run{once} and compares every number.")
    base = manifest.get("base") or {}
    hashes = {
        "base: weights and config": base.get("hash"),
        "base: tokenizer": base.get("tokenizer"),
        "rows, masked and packed": manifest.get("data"),
        "trained weights": facts.run.train.get("weights"),
    }
    shown = table(("what", "blake2b-128"), ((plain(what), code(value)) for what, value in hashes.items() if value))
    tail = "Hashes of the files of this folder are in `luthier.json`." if facts.kind != "gguf" else ""
    return f"## Reproduce\n\n{bullets(lines)}\n\n{shown}\n\n{tail}"


def _hardware(hardware: dict[str, Any]) -> str:
    """Device names and sizes; the kernel's name and version say nothing about the result."""
    parts = [f"{len(gpus)} x {plain(gpus[0])}" for gpus in [hardware.get("gpus")] if gpus]
    parts.append(f"{plain(hardware.get('cpu', 'unknown processor'))}, {plain(hardware.get('cores', '?'))} cores")
    if isinstance(hardware.get("memory_bytes"), int):
        parts.append(f"{hardware['memory_bytes'] / 2**30:.0f} GiB of memory")
    return ", ".join(parts)
