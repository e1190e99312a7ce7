"""Contract: rows of one batch, each with its own adapter or none, get what PEFT computes for each alone."""

import random

import pytest
import torch

from luthier.generation.generate import generate
from luthier.model.load import load_tuned
from luthier.recipe.schema import ModelSection
from luthier.runtime.device import pick_device
from luthier.runtime.errors import RunFailed
from luthier.serve.engine.adapters import AdapterBank, load_adapter, shareable
from tests.serve.asking import TOKENIZER, Running, ask
from tests.serve.serving import adapter_folder, host_of, plain, tuned
from tests.support.tiny import save_tiny, tiny_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    base = save_tiny(root / "base")
    return {
        "base": base,
        "one": adapter_folder(root / "one", base, seed=1),
        "two": adapter_folder(root / "two", base, seed=2, r=8, target_modules=["q_proj", "gate_proj", "o_proj"]),
        "rs": adapter_folder(root / "rs", base, seed=3, use_rslora=True, target_modules="all-linear"),
    }


def peft(folders, name):
    section = ModelSection(name_or_path=str(folders["base"]))
    return load_tuned(section, folders[name], device=pick_device(), dtype="float32")


def rows_of(n):
    chooser = random.Random(7)
    return [[chooser.randrange(3, 600) for _ in range(chooser.randint(2, 30))] for _ in range(n)]


@pytest.mark.parametrize("paged", [False, True])
def test_mixed_batches_equal_peft_row_by_row(folders, paged):
    names = ["one", None, "two", "rs", "one", None, "two", "rs"]
    rows = rows_of(len(names))
    model = tiny_model().eval()
    adapters = {name: load_adapter(folders[name], model, name) for name in ("one", "two", "rs")}
    with Running(model, max_batch_size=5, prefill_tokens=24, paged=paged) as engine:
        asked = [
            ask(row, new=16, stop_ids=(), adapter=adapters.get(name)) for row, name in zip(rows, names, strict=True)
        ]
        engine.submit(*(one.request for one in asked))
        got = [one.wait().ids for one in asked]
    expected = []
    for row, name in zip(rows, names, strict=True):
        alone = tiny_model() if name is None else peft(folders, name)
        expected.append(generate(alone, TOKENIZER, [row], max_new_tokens=16, stop_ids=[], batch_size=1)[0].ids)
    assert got == expected
    assert len(set(expected)) == len(expected)
    base = tiny_model()
    plain_ids = [generate(base, TOKENIZER, [r], max_new_tokens=16, stop_ids=[], batch_size=1)[0].ids for r in rows]
    changed = [a != b for a, b, name in zip(expected, plain_ids, names, strict=True) if name is not None]
    assert all(changed), "adapters that change nothing would prove nothing"


def test_logits_of_every_mix_are_those_of_peft(folders):
    model = tiny_model().eval()
    bank = AdapterBank(model)
    adapters = {name: load_adapter(folders[name], model, name) for name in ("one", "two", "rs")}
    ids = torch.tensor([[5, 6, 7, 8]] * 3)
    with torch.no_grad():
        expected = {name: peft(folders, name)(input_ids=ids[:1]).logits[0] for name in adapters}
        expected[None] = tiny_model()(input_ids=ids[:1]).logits[0]
        for mix in (
            ("one", "one", "one"),
            ("one", None, "two"),
            (None, None, None),
            ("rs", "two", "one"),
            ("two",) * 3,
        ):
            bank.use([adapters.get(name) for name in mix])
            logits = model(input_ids=ids).logits
            for row, name in zip(logits, mix, strict=True):
                torch.testing.assert_close(row, expected[name], atol=1e-4, rtol=1e-4)


def test_adapters_that_cannot_share_get_a_model_of_their_own_and_answer_as_peft_does(folders, tmp_path, capsys):
    dora = adapter_folder(tmp_path / "dora", folders["base"], seed=4, use_dora=True)
    assert shareable(dora) == "it uses use_dora" and shareable(folders["one"]) is None
    host = host_of([tuned(dora, folders["base"], "dora"), tuned(folders["one"], folders["base"], "one")])
    try:
        assert host.names() == ["dora", "tiny", "one"], "the base comes with the adapter that shares it"
        assert host.find("dora").engine is not host.find("one").engine is host.find("tiny").engine
        served = host.find("dora")
        asked = ask([5, 6, 7], new=12, stop_ids=())
        served.engine.submit(asked.request)
        section = ModelSection(name_or_path=str(folders["base"]))
        alone = load_tuned(section, dora, device=pick_device(), dtype="float32")
        expected = generate(alone, TOKENIZER, [[5, 6, 7]], max_new_tokens=12, stop_ids=[], batch_size=1)[0]
        assert asked.wait().ids == expected.ids
    finally:
        host.close()
    assert "model of its own" in capsys.readouterr().err


def test_an_adapter_of_another_base_is_refused(folders, tmp_path):
    other = save_tiny(tmp_path / "other", seed=9)
    host = host_of([plain(other)])
    try:
        with pytest.raises(RunFailed, match="M318"):
            host.add(tuned(folders["one"], other, "one"))
        assert host.names() == ["tiny"]
    finally:
        host.close()
    with pytest.raises(RunFailed, match="M324"):
        load_adapter(folders["one"], tiny_model(hidden_size=32), "one")


def test_a_changed_file_is_refused(folders, tmp_path):
    import shutil

    copy = shutil.copytree(folders["one"], tmp_path / "copy")
    file = copy / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunFailed, match="M317"):
        load_adapter(copy, tiny_model(), "x")
