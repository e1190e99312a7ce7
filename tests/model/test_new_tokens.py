"""Contract: new tokens follow the last id, only their rows train, and they survive saving exactly."""

from __future__ import annotations

import pytest
import torch

from luthier.model.load import load_tuned
from luthier.model.new_tokens import new_token_ids
from luthier.model.save import save_trained
from luthier.model.tokenizer import load_tokenizer
from luthier.runtime.errors import RecipeError
from tests.model.support import CPU, base_folder, load, logits, prepare, section, some_ids, train

NEW = ["<think>", "</think>"]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def base(request, tmp_path_factory):
    return base_folder(tmp_path_factory.mktemp("base") / "base", tied=request.param)


@pytest.fixture(scope="module")
def last(base):
    """Largest id of the plain tokenizer; the fixture's model has padding rows behind it."""
    return max(load_tokenizer(section(base)).get_vocab().values())


def tables(model):
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


def test_ids_follow_the_last_token_even_where_the_model_has_padding_rows(base, last):
    tokenizer = load_tokenizer(section(base, new_tokens=NEW))
    assert new_token_ids(tokenizer, NEW) == [last + 1, last + 2]
    assert last + 2 < 600
    assert load(section(base, new_tokens=NEW)).get_input_embeddings().weight.shape[0] == 600
    text = "a<think>b</think>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [ids.count(last + 1), ids.count(last + 2)] == [1, 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_tables_grow_only_as_far_as_needed_and_old_rows_keep_every_byte(base, last):
    many = [f"<new{number}>" for number in range(600 - last + 4)]
    plain, longer = load(section(base)), load(section(base, new_tokens=many))
    for old, new in zip(tables(plain), tables(longer), strict=True):
        assert new.shape == (last + 1 + len(many), 64)
        assert torch.equal(new[: last + 1], old[: last + 1])
        assert torch.equal(new[last + 1 :], old[: last + 1].mean(dim=0).expand(len(many), -1))
    assert longer.config.vocab_size == last + 1 + len(many)
    assert (tables(longer)[0] is tables(longer)[1]) == (tables(plain)[0] is tables(plain)[1])


@pytest.mark.parametrize("method", [{"name": "lora"}, {"name": "qlora"}, {"name": "lora", "use_dora": True}], ids=str)
def test_with_adapters_only_the_new_rows_train_and_saving_loses_nothing(base, last, tmp_path, method):
    where = section(base, new_tokens=NEW)
    tuned, tokenizer = prepare(where, **method)
    ids = new_token_ids(tokenizer, NEW)
    old = [table.clone() for table in tables(load(where))]
    train(tuned, extra=ids)
    for before, wrapper in zip(
        old, (tuned.model.get_input_embeddings(), tuned.model.get_output_embeddings()), strict=True
    ):
        adapter = wrapper.token_adapter
        now = adapter.get_merged_weights(["default"])
        changed = (now != before).any(dim=1).nonzero().flatten().tolist()
        assert changed == ids
    expected = logits(tuned.model, some_ids(ids))
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    again = load_tuned(
        where,
        tmp_path / "out",
        device=CPU,
        dtype="float32",
        quantization="nf4" if method["name"] == "qlora" else "none",
    )
    assert torch.equal(logits(again, some_ids(ids)), expected)
    reloaded = load_tokenizer(section(base, tokenizer=str(tmp_path / "out")))
    assert new_token_ids(reloaded, NEW) == ids
    assert max(reloaded.get_vocab().values()) < again.get_input_embeddings().weight.shape[0]


def test_rows_trained_in_full_are_not_trained_twice(base, last):
    tuned, _ = prepare(section(base, new_tokens=NEW), name="lora", modules_to_save=["embed_tokens", "lm_head"])
    assert not [name for name in tuned.report.names if "trainable_tokens" in name]
    assert any("new token rows included" in note for note in tuned.report.notes)


def test_full_fine_tuning_trains_and_keeps_them(base, tmp_path):
    where = section(base, new_tokens=NEW)
    tuned, tokenizer = prepare(where, name="full")
    ids = new_token_ids(tokenizer, NEW)
    before = tables(tuned.model)[0][ids].clone()
    train(tuned, extra=ids)
    assert (tables(tuned.model)[0][ids] != before).all()
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    again = load_tuned(where, tmp_path / "out", device=CPU, dtype="float32")
    assert torch.equal(logits(again, some_ids(ids)), logits(tuned.model, some_ids(ids)))


def test_a_token_that_exists_keeps_its_id_and_its_row(base):
    where = section(base, new_tokens=["<|endoftext|>", "<think>"])
    tokenizer = load_tokenizer(where)
    assert new_token_ids(tokenizer, where.new_tokens)[0] == 0
    assert torch.equal(tables(load(where))[0][0], tables(load(section(base)))[0][0])


def test_a_head_adapter_and_new_rows_in_the_head_are_refused(tmp_path):
    base = base_folder(tmp_path / "base")
    with pytest.raises(RecipeError, match="LoRA adapter and new token rows at once"):
        prepare(section(base, new_tokens=NEW), name="lora", target_modules=["q_proj", "lm_head"])


@pytest.mark.parametrize("tokens", [["<a>", "<a>"], [""], [" "]])
def test_empty_and_repeated_tokens_are_refused(base, tokens):
    with pytest.raises(RecipeError, match="empty or repeated"):
        load_tokenizer(section(base, new_tokens=tokens))


def test_asking_for_the_id_of_a_token_that_was_not_added_is_an_error(base):
    with pytest.raises(RecipeError, match="lacks these new tokens: '<x>'"):
        new_token_ids(load_tokenizer(section(base)), ["<x>"])
