"""Contract: a checkpoint is complete or absent; whatever was damaged later is named; old ones go last."""

from __future__ import annotations

import json
import os
import resource

import pytest
import torch

from luthier.runtime.errors import EnvironmentProblem, RunFailed
from luthier.train import checkpoint as subject
from luthier.train import saved as reading
from luthier.train.checkpoint import Checkpoint, checkpoint_path, checkpoints, load_tensors, read_state, save, verify
from luthier.train.rotate import remove_old, superfluous
from luthier.train.saved import SavedTensors
from tests.train.fork import forked
from tests.train.support import data, train

TENSORS = {
    "trainable": {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)},
    "optimizer": {"a/step": torch.tensor(3.0)},
}


def write(folder, step: int = 1):
    path = checkpoint_path(folder, step)
    save(path, tensors=TENSORS, state={"step": step, "loss": 0.1 + 0.2})
    return path


def test_what_is_read_is_what_was_written(tmp_path):
    path = write(tmp_path)
    assert verify(path) == []
    assert read_state(path)["loss"] == 0.1 + 0.2, "floats survive exactly"
    for stem, group in TENSORS.items():
        loaded = load_tensors(path, stem)
        assert loaded.keys() == group.keys()
        assert all(torch.equal(loaded[name], group[name]) for name in group)


def test_no_file_is_a_pickle(tmp_path):
    """F13: safetensors and JSON only, in everything a run leaves."""
    train(tmp_path, max_steps=2, save_steps=1)
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".jsonl", ".safetensors", ".jinja"}
    for path in tmp_path.rglob("*.safetensors"):
        assert path.read_bytes()[8:9] == b"{", "a safetensors header is JSON"


def test_large_groups_are_split_over_files(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "SHARD_BYTES", 30)
    path = write(tmp_path)
    assert len(list(path.glob("trainable-*.safetensors"))) == 2
    assert verify(path) == []
    assert load_tensors(path, "trainable").keys() == {"a", "b"}


def test_tensors_that_share_memory_are_saved_like_others(tmp_path):
    shared = torch.arange(4.0)
    save(tmp_path / "step-1", tensors={"optimizer": {"a/map": shared, "b/map": shared}}, state={"step": 1})
    assert torch.equal(load_tensors(tmp_path / "step-1", "optimizer")["b/map"], shared)


def test_saved_tensors_are_read_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "SHARD_BYTES", 200)
    monkeypatch.setattr(reading, "MAPPED_BYTES", 100)
    held = {f"m{index}": torch.arange(24.0).view(6, 4) + index for index in range(5)} | {"step": torch.tensor(3.0)}
    save(tmp_path / "step-1", tensors={"optimizer": held}, state={"step": 1})
    saved = SavedTensors(tmp_path / "step-1", "optimizer")
    assert {name: tuple(shape) for name, shape in saved.shapes.items()} == {n: tuple(t.shape) for n, t in held.items()}
    assert len(list((tmp_path / "step-1").glob("optimizer-*"))) == 3
    for name in [*held, *reversed(held)]:
        assert torch.equal(saved[name], held[name])
    assert torch.equal(saved.rows("m2", 2, 5), held["m2"][2:5]) and saved.rows("m4", 6, 6).shape == (0, 4)
    assert "step" in saved and "other" not in saved


FILES = ["trainable-00001.safetensors", "optimizer-00001.safetensors", "state.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path, name):
    path = write(tmp_path)
    (path / name).unlink()
    assert any(f"step-1/{name} is missing" in problem.message for problem in verify(path))


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_named(tmp_path, name):
    """F30: same size, one bit in the middle."""
    path = write(tmp_path)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    problems = verify(path)
    assert problems
    if name != "manifest.json":
        assert problems[0].message.startswith(f"step-1/{name} was altered")


def test_a_cut_and_an_added_file_are_named(tmp_path):
    path = write(tmp_path)
    content = (path / "state.json").read_bytes()
    (path / "state.json").write_bytes(content[:-5])
    (path / "notes.txt").write_text("hello")
    messages = [problem.message for problem in verify(path)]
    assert messages[0] == f"step-1/state.json has {len(content) - 5} bytes instead of {len(content)}"
    assert messages[1] == "step-1/notes.txt does not belong to the checkpoint"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', '{"files": {"a": {}}, "format": 1}'])
def test_a_manifest_that_is_none_is_damage_and_no_crash(tmp_path, text):
    path = write(tmp_path)
    (path / "manifest.json").write_text(text)
    assert "manifest.json is damaged" in verify(path)[0].message


def test_another_format_is_refused(tmp_path):
    path = write(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    assert "format 99" in verify(path)[0].message


def test_steps_are_ordered_by_number_and_other_names_ignored(tmp_path):
    for name in ("step-10", "step-9", ".tmp-step-11", "step-x", "best"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-12").write_text("a file")
    assert [item.step for item in checkpoints(tmp_path)] == [9, 10]


# -- rotation


def found(*steps: int) -> list[Checkpoint]:
    return [Checkpoint(step, checkpoint_path(tmp, step)) for step in steps for tmp in [__import__("pathlib").Path("x")]]


@pytest.mark.parametrize(
    ("steps", "newest", "best", "keep", "gone"),
    [
        ((1, 2, 3, 4), 4, None, 2, {1, 2}),
        ((1, 2, 3, 4), 4, 1, 2, {2}),
        ((1, 2, 3, 4), 4, 4, 2, {1}),
        ((1, 2, 3, 9), 3, None, 2, {1}),  # 9 was left by a run that was rolled back: not counted, not touched
        ((4,), 4, None, 2, set()),
        ((1, 2), 2, 1, 1, set()),
    ],
)
def test_the_newest_and_the_best_always_stay(steps, newest, best, keep, gone):
    removed = {item.step for item in superfluous(found(*steps), newest=newest, best=best, keep=keep)}
    assert removed == gone
    assert newest not in removed
    assert best not in removed


def test_removing_leaves_whole_checkpoints_only(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step)
    assert remove_old(tmp_path, newest=3, best=None, keep=2) == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-3"]


def test_old_checkpoints_stay_when_the_new_one_does_not_verify(tmp_path, monkeypatch):
    """F03: transformers#25136 deleted them all."""
    from luthier.train import snapshot

    real = snapshot.save

    def torn(path, **kwargs):
        real(path, **kwargs)
        if path.name == "step-3":
            (path / "state.json").write_text("{}")

    monkeypatch.setattr(snapshot, "save", torn)
    with pytest.raises(RunFailed, match=r"step-3/state\.json"):
        train(tmp_path, max_steps=4, save_steps=1, save_total_limit=2)
    assert verify(tmp_path / "checkpoints/step-1") == []
    assert verify(tmp_path / "checkpoints/step-2") == []


# -- disk full


def test_a_file_size_limit_ends_the_run_and_leaves_older_checkpoints_whole(tmp_path):
    """F03 with a real limit of the operating system, set between the first and the second save."""

    def child() -> None:
        from luthier.train import snapshot

        real = snapshot.save

        def limited(path, **kwargs):
            if path.name == "step-2":
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            real(path, **kwargs)

        snapshot.save = limited
        train(tmp_path, data(), max_steps=4, save_steps=1)

    ended = forked(child)
    assert ended.error is not None
    assert isinstance(ended.error, EnvironmentProblem)
    assert "step-2" in ended.error.message or "step-2" in str(ended.error)
    assert "ulimit" in str(ended.error)
    folder = tmp_path / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-1"], "nothing half-written is left"
    assert verify(folder / "step-1") == []


def test_no_space_names_disk_and_file(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(tensors, path):
        path.write_bytes(b"torn")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(
        EnvironmentProblem, match=r"step-1: No space left on device \(\d+ MiB free on its disk\)"
    ) as caught:
        write(tmp_path)
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []
    assert os.strerror(28) in str(caught.value)
