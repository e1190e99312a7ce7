"""Contract: equal content gives equal hashes, one changed byte another one, and a saved folder knows its own bytes."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from luthier.model import identity
from luthier.model.identity import base_identity, verify_record
from luthier.model.load import load_tuned
from luthier.model.save import save_trained
from luthier.runtime.errors import RunFailed
from tests.model.support import CPU, base_folder, load, prepare, section


def flip(file, position=None):
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 1
    file.write_bytes(data)


def test_a_copy_has_the_same_identity_and_names_do_not_matter(tmp_path):
    first = base_folder(tmp_path / "a")
    shutil.copytree(first, tmp_path / "b")
    (tmp_path / "b" / "README.md").write_text("new")
    assert base_identity(first) == base_identity(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("model.safetensors", {"hash", "weights"}),
        ("config.json", {"hash", "config"}),
        ("tokenizer.json", {"tokenizer"}),
    ],
)
def test_one_bit_changes_the_hash_of_its_part(tmp_path, name, parts):
    folder = base_folder(tmp_path / "a")
    before = base_identity(folder)
    flip(folder / name)
    after = base_identity(folder)
    assert {key for key in before if before[key] != after[key]} == parts | {"files"}


def test_a_byte_changed_behind_the_back_of_the_cache_is_seen(tmp_path):
    folder = base_folder(tmp_path / "a")
    file = folder / "model.safetensors"
    stat = file.stat()
    before = base_identity(folder)
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x55")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert base_identity(folder)["hash"] != before["hash"]


def test_the_second_time_no_file_is_read(tmp_path, monkeypatch):
    folder = base_folder(tmp_path / "a")
    before = base_identity(folder)

    def refuse(path):
        raise AssertionError(f"read {path}")

    monkeypatch.setattr(identity, "hash_file", refuse)
    assert base_identity(folder) == before


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch):
    folder = base_folder(tmp_path / "a")
    expected = base_identity(folder)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "file" / "cache"))
    assert base_identity(folder) == expected


@pytest.mark.parametrize("method", ["lora", "full"])
def test_one_flipped_byte_in_any_saved_file_is_refused_by_name(tmp_path, method):
    base = base_folder(tmp_path / "base")
    tuned, tokenizer = prepare(section(base), name=method)
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out").iterdir() if file.name != "luthier.json")
    assert len(names) >= 6
    for name in names:
        shutil.copytree(tmp_path / "out", tmp_path / "bad", dirs_exist_ok=True)
        flip(tmp_path / "bad" / name)
        with pytest.raises(RunFailed, match=rf"bad/{name} is not what was written") as caught:
            load_tuned(section(base), tmp_path / "bad", device=CPU, dtype="float32")
        assert caught.value.problems[0].code == "M317"
        (tmp_path / "bad" / name).unlink()
        with pytest.raises(RunFailed, match=rf"bad/{name} is missing"):
            verify_record(tmp_path / "bad")


def test_a_saved_model_used_as_a_base_is_checked_too(tmp_path):
    base = base_folder(tmp_path / "base")
    tuned, tokenizer = prepare(section(base), name="full")
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    load(section(tmp_path / "out"))
    flip(tmp_path / "out" / "model.safetensors")
    with pytest.raises(RunFailed, match=r"model\.safetensors is not what was written"):
        load(section(tmp_path / "out"))


def test_a_flipped_byte_in_the_base_is_found_through_the_adapter(tmp_path):
    base = base_folder(tmp_path / "base")
    tuned, tokenizer = prepare(section(base), name="lora")
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    flip(base / "model.safetensors")
    with pytest.raises(RunFailed, match="has other weights"):
        load_tuned(section(base), tmp_path / "out", device=CPU, dtype="float32")


@pytest.mark.parametrize("text", ["{", "[]", '{"files": 3}'])
def test_a_damaged_record_is_refused(tmp_path, text):
    folder = base_folder(tmp_path / "a")
    (folder / "luthier.json").write_text(text)
    with pytest.raises(RunFailed, match=r"luthier\.json is damaged"):
        load(section(folder))


def test_the_record_says_which_base_and_which_types(tmp_path):
    base = base_folder(tmp_path / "base")
    tuned, tokenizer = prepare(section(base, revision="main"), dtype="bfloat16", name="lora")
    save_trained(tuned.model, tokenizer, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "luthier.json").read_text())
    assert record["base"]["name_or_path"] == str(base)
    assert record["base"]["revision"] == "main"
    assert record["base"]["hash"] == base_identity(base)["hash"]
    assert (record["kind"], record["dtype"], record["trained_in"]) == ("adapter", "float32", "bfloat16")
    assert set(record["versions"]) >= {"torch", "transformers", "peft"}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (str(base), "main")
