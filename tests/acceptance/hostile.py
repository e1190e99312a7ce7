"""A model folder from a stranger: no command runs what it brings along (section 3, 37)."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.acceptance.lab import Check, Lab, check
from tests.acceptance.training import lora
from tests.support.tiny import CHATML

SECONDS = 30


class _Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def _config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), "utf-8")


def _pickles_only(folder: Path, mark: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Payload(mark)))


def _pickles_beside(folder: Path, mark: Path) -> None:
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "adapter_model.bin",
    ):
        (folder / name).write_bytes(pickle.dumps(_Payload(mark)))


def _code(folder: Path, mark: Path) -> None:
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        "from transformers import LlamaConfig as EvilConfig, LlamaForCausalLM as Evil\n"
        "from transformers import PreTrainedTokenizerFast as EvilTokenizer\n"
    )
    table = {
        "AutoConfig": "evil.EvilConfig",
        "AutoModelForCausalLM": "evil.Evil",
        "AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"],
    }
    pipelines = {"text-generation": {"impl": "evil.Evil"}}
    _config(
        folder,
        auto_map=table,
        trust_remote_code=True,
        _attn_implementation_internal="evil/evil",
        custom_pipelines=pipelines,
    )
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "auto_map": table, "trust_remote_code": True}))


def _code_needed(folder: Path, mark: Path) -> None:
    _code(folder, mark)
    _config(folder, model_type="evil", architectures=["Evil"])


def _template(text: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, mark: Path) -> None:
        (folder / "chat_template.jinja").write_text(text.replace("MARK", str(mark)), "utf-8")

    return make


ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch MARK') }}"
LOOPS = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "{% endfor %}" * 3
FOLDERS: dict[str, tuple[Callable[[Path, Path], None], tuple[str, ...], bool]] = {
    # what, commands, whether each of them must end with an error
    "weights are a pickle": (_pickles_only, ("train", "eval", "chat"), True),
    "pickles beside the weights": (_pickles_beside, ("train",), False),
    "code and consent in its config": (_code, ("train", "data", "eval", "chat", "plan"), False),
    "an architecture that is code": (_code_needed, ("train", "plan"), True),
    "a template that escapes": (_template(ESCAPE + CHATML), ("data", "chat"), True),
    "a template of endless loops": (_template(LOOPS + CHATML), ("data", "chat"), True),
    "a template of 3 GB": (_template("{{ 'x' * 3000000000 }}" + CHATML), ("data",), True),
}


@check("37", "a hostile model folder: no code of it runs", refuses=True)
def hostile(lab: Lab, c: Check) -> None:
    mark = lab.folder / "hostile-mark"
    for number, (what, (make, verbs, must_fail)) in enumerate(FOLDERS.items()):
        folder = lab.folder / f"hostile{number}"
        shutil.copytree(lab.base, folder)
        make(folder, mark)
        for verb in verbs:
            _try(lab, c, f"{what}: {verb}", folder, verb, must_fail)
            if mark.exists():
                c.equal(f"{what}: {verb}: its code ran", True, False)
                mark.unlink()
    run = lora(lab)
    adapter = lab.folder / "pickled-adapter"
    shutil.copytree(run.folder / "final", adapter)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(_Payload(mark)))
    recipe = _recipe(lab, "hostile-adapter", lab.base)
    c.refused("a pickled adapter: eval", lab.luthier("eval", recipe, "--model", adapter), (1, 2, 4), "adapter_model")
    c.equal("code ran", mark.exists(), False)
    pickles = [path.name for path in run.folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    c.equal("pickles in our own output", pickles, [])


def _recipe(lab: Lab, name: str, base: Path) -> Path:
    task = {"name": "held", "path": str(lab.held_out), "metric": "exact", "limit": 2, "max_new_tokens": 2}
    return lab.recipe(name, model__name_or_path=str(base), evaluate={"tasks": [task]},
                      train__max_steps=1, train__num_train_epochs=None)  # fmt: skip


def _try(lab: Lab, c: Check, what: str, folder: Path, verb: str, must_fail: bool) -> None:
    recipe = _recipe(lab, f"{folder.name}-{verb}", folder)
    commands = {
        "train": ("train", recipe), "data": ("data", "show", recipe, "--json"), "eval": ("eval", recipe),
        "chat": ("chat", folder, "--prompt", "time"), "plan": ("plan", recipe),
    }  # fmt: skip
    ran = lab.luthier(*commands[verb])
    if must_fail and verb != "plan":
        c.refused(what, ran, (1, 2, 3, 4))
    elif "Traceback" in ran.err or "R799" in ran.err or ran.code not in (0, 1, 2, 3, 4):
        c.fail(f"{what}: exit {ran.code}: {ran.err[-300:]}")
    if ran.cpu > SECONDS:
        c.at_most(f"{what}: seconds", ran.cpu, SECONDS)
