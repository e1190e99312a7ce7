"""Contract: any number of processes goes on where a step is as large; old checkpoints go when the new one is whole."""

import pytest

from luthier.online.checkpoint import find, keep_newest, seal
from luthier.runs.folder import RunFolder
from luthier.runtime.errors import RecipeError


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run").create()


def identity(batch, accumulate, **more):
    train = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate, "seed": 0}
    return {"train": train, "total_steps": 6, **more}


def written(run, step, *, sealed=True, **progress):
    folder = run.path / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text(str(step))
    if sealed:
        seal(folder, identity=identity(4, 2), progress={"seconds": 1.0, **progress})
    return folder


@pytest.mark.parametrize(("batch", "accumulate", "processes"), [(4, 2, 2), (8, 2, 1), (2, 2, 4), (1, 1, 16)])
def test_steps_that_are_as_large_go_on(run, batch, accumulate, processes):
    written(run, 3, processes=2)
    found = find(run, identity(batch, accumulate), processes=processes)
    assert (found.step, found.processes) == (3, 2)


def test_other_steps_and_other_settings_do_not(run):
    written(run, 3, processes=2)
    with pytest.raises(RecipeError, match=r"train\.completions_per_step: 16 -> 8") as caught:
        find(run, identity(4, 2), processes=1)
    assert caught.value.problems[0].code == "T432"
    with pytest.raises(RecipeError, match="base"):
        find(run, identity(4, 2, base="other"), processes=2)


def test_one_that_does_not_say_is_of_one_process(run):
    written(run, 3)
    assert find(run, identity(4, 2)).processes == 1


def test_only_whole_ones_count_and_the_newest_stay(run):
    for step in (2, 4, 10, 6):
        written(run, step)
    written(run, 12, sealed=False)
    keep_newest(run, None)
    assert len(list((run.path / "checkpoints").iterdir())) == 5
    keep_newest(run, 2)
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == [
        "checkpoint-10", "checkpoint-12", "checkpoint-6",
    ]  # fmt: skip
