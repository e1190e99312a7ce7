"""Contract: a file or folder is complete or absent, whatever happens while it is written."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.runtime.atomic import TEMP_PREFIX, atomic_folder, sweep, write_json, write_text
from luthier.runtime.errors import EnvironmentProblem


def test_a_failed_folder_leaves_the_old_one_and_nothing_else(tmp_path):
    target = tmp_path / "final"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(ValueError, match="half way"), atomic_folder(target) as folder:
        (folder / "a").write_text("new")
        raise ValueError("half way")
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_files_of_a_folder_can_be_read_by_others(tmp_path):
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "below").mkdir()
        for name in ("weights", "below/more"):
            (folder / name).write_text("x")
            (folder / name).chmod(0o600)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert modes == {"weights": 0o644, "more": 0o644}


def test_a_folder_replaces_the_old_one_whole(tmp_path):
    target = tmp_path / "final"
    for name in ("a", "b"):
        with atomic_folder(target) as folder:
            (folder / name).write_text(name)
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_what_is_renamed_is_on_the_disk_and_then_its_name_is(tmp_path, monkeypatch):
    """No kill shows that, only a power cut: what was written is in the kernel's hands."""
    flushed: set[str] = set()
    unflushed: list[str] = []
    rename = os.replace

    def replace(source, target):
        inside = [Path(source), *Path(source).rglob("*")]
        unflushed.extend(path.name for path in inside if str(path) not in flushed)
        flushed.discard(str(Path(target).parent))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", lambda handle: flushed.add(str(Path(f"/proc/self/fd/{handle}").readlink())))
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "file", "x")
    assert (unflushed, str(tmp_path) in flushed) == ([], True)
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "below").mkdir()
        for name in ("a", "below/b"):
            (folder / name).write_text("x")
    assert (unflushed, str(tmp_path) in flushed) == ([], True)


@pytest.mark.parametrize("kill_at", range(1, 7))
def test_a_kill_at_any_file_operation_leaves_old_or_new_but_never_a_mixture(tmp_path, kill_at):
    target = tmp_path / "final"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
        (folder / "b").write_text("old")
    script = f"""
import os, signal
from pathlib import Path
from luthier.runtime import atomic
calls = 0
def dying(function):
    def wrapper(*args, **kwargs):
        global calls
        calls += 1
        if calls == {kill_at}:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapper
os.fsync = dying(os.fsync)
os.replace = dying(os.replace)
with atomic.atomic_folder(Path({str(target)!r})) as folder:
    (folder / "a").write_text("new")
    (folder / "b").write_text("new")
"""
    code = subprocess.run([sys.executable, "-c", script], check=False).returncode
    assert code in (0, -signal.SIGKILL)
    if target.exists():  # between the two renames of a replacement the folder may be absent, never mixed
        assert len({(target / name).read_text() for name in ("a", "b")}) == 1
    sweep(tmp_path)
    assert not list(tmp_path.glob(TEMP_PREFIX + "*"))


def test_json_with_nan_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_with_its_file(tmp_path):
    """A file-size limit stands in for a full disk: the same error path."""
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from luthier.runtime.atomic import write_text\n"
        "from luthier.runtime.errors import EnvironmentProblem\n"
        f"target = Path({str(tmp_path)!r}) / 'big.txt'\n"
        "try:\n"
        "    write_text(target, 'x' * 100000)\n"
        "except EnvironmentProblem as error:\n"
        "    print(error)\n"
        "    sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "big.txt" in done.stdout and "File too large" in done.stdout
    assert not list(tmp_path.iterdir())
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(EnvironmentProblem, match="output_dir"):
        write_text(tmp_path / "x", "y")


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(EnvironmentProblem, match="runs"):
        write_text(tmp_path / "runs" / "x" / "y.json", "{}")


def test_unicode_survives(tmp_path):
    write_json(tmp_path / "x.json", {"text": "é 你好 🙂"})
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == {"text": "é 你好 🙂"}


def test_a_sweep_passes_over_what_is_being_written(tmp_path):
    """Runs that go on at the same time share a cache."""
    (tmp_path / ".tmp-of-a-killed-one").mkdir()
    with atomic_folder(tmp_path / "entry") as folder:
        assert sweep(tmp_path) == [tmp_path / ".tmp-of-a-killed-one"]
        (folder / "a").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
