"""Contract: each way a hub can refuse gives exit code 6 and says what to do; nothing is fetched that could run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from luthier.model.locate import locate_model
from luthier.runtime.errors import AccessError, RecipeError


def hub(monkeypatch, outcome):
    """Put a hub in place that answers with `outcome` (an exception, or a folder); returns the calls it got."""
    calls = []

    def snapshot_download(repo, **options):
        calls.append((repo, options))
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def answer(kind, status=403):
    response = SimpleNamespace(status_code=status, headers={}, request=SimpleNamespace(url="u", method="GET"), url="u")
    return kind("refused", response=response)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (answer(errors.GatedRepoError), "gated[\\s\\S]*hf auth login"),
        (answer(errors.RepositoryNotFoundError, 404), "no folder and no readable hub repository"),
        (answer(errors.RevisionNotFoundError, 404), "no revision 'v9'"),
        (errors.LocalEntryNotFoundError("offline"), "not in the hub cache, and the hub cannot be reached"),
        (errors.OfflineModeIsEnabled("offline"), "cannot be reached"),
        (answer(errors.HfHubHTTPError, 503), "the hub refused"),
        (ConnectionError("no route"), "the hub refused"),
    ],
)
def test_every_refusal_of_the_hub_is_exit_code_6_with_a_fix(monkeypatch, outcome, words):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub(monkeypatch, outcome)
    with pytest.raises(AccessError, match=words) as caught:
        locate_model("org/model", "v9")
    assert caught.value.exit_code == 6
    assert caught.value.problems[0].hint


def test_offline_is_named_as_the_reason_by_the_real_client(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(AccessError, match="HF_HUB_OFFLINE is set"):
        locate_model("org/there-is-no-such-model-in-any-cache")


def test_only_data_files_are_fetched(monkeypatch, tmp_path):
    calls = hub(monkeypatch, tmp_path)
    assert locate_model("org/model", "abc") == tmp_path
    patterns = calls[0][1]["allow_patterns"]
    assert calls[0][1]["revision"] == "abc"
    assert not any(
        pattern.endswith((".py", ".bin", ".pt", ".pth", "*")) for pattern in patterns if pattern != "LICENSE*"
    )
    locate_model("org/model", weights=False)
    assert not any("safetensors" in pattern for pattern in calls[1][1]["allow_patterns"])


def test_python_files_are_fetched_only_for_a_trusted_model(monkeypatch, tmp_path):
    calls = hub(monkeypatch, tmp_path)
    locate_model("org/model", trust_remote_code=True)
    assert "*.py" in calls[0][1]["allow_patterns"]


@pytest.mark.parametrize("name", ["./no", "/no/such", "~/no-such-folder", "a/b/c", "-x", "", "org/../x"])
def test_what_cannot_be_a_hub_id_never_asks_the_hub(monkeypatch, name):
    calls = hub(monkeypatch, Path())
    with pytest.raises(RecipeError, match="M301"):
        locate_model(name)
    assert not calls


def test_a_local_folder_wins_over_the_hub(monkeypatch, tmp_path):
    calls = hub(monkeypatch, Path("elsewhere"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert locate_model("org/model") == Path("org/model")
    assert not calls


def test_locating_and_hashing_need_no_torch():
    import subprocess

    code = "import luthier.model.locate, luthier.model.identity, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
