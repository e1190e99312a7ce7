"""Push a model folder: compare with what is there, send what differs, read back what arrived.

    repository  ->  what is there  ->  differences  ->  upload_folder  ->  names and hashes there == here

`huggingface_hub` moves the bytes. A push that is interrupted is taken up by pushing again: large files that had arrived
are known by their hash. A push that would change nothing sends nothing and makes no commit.
"""

from __future__ import annotations

import glob
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier.export.hub.failures import explained
from luthier.export.hub.files import PushFile, digest
from luthier.runtime.atomic import TEMP_PREFIX, explain_os_error
from luthier.runtime.console import note
from luthier.runtime.env import read_env
from luthier.runtime.errors import AccessError, EnvironmentProblem, RecipeError, RunFailed

__all__ = ["PushResult", "PushSettings", "push_files", "remote_card", "require_token"]

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSettings:
    """Where to, and how."""

    repo_id: str
    """`owner/name`."""
    private: bool = True
    """Visibility of a repository that is made; one that exists must not be more public than asked for."""
    revision: str = "main"
    """Branch; made if it is not there."""
    message: str = "Upload with Luthier"
    """Of the commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """What a push came to."""

    repo_id: str
    url: str
    revision: str
    commit: str
    """Head of the branch afterwards."""
    changed: bool
    """A commit was made."""
    sent: list[str]
    """Files that differed."""
    removed: list[str]
    """Weight files of an earlier push that belong to no model any more."""
    unchanged: int
    others: list[str]
    """Further files there, left alone."""
    card: str
    """SHA-1 of the pushed README.md as git names it; empty without one."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def require_token() -> str:
    """The token: `HF_TOKEN`, or what `hf auth login` stored. It is handed on in memory only.

    Raises:
        AccessError: there is none, or HF_HUB_OFFLINE is set.
        EnvironmentProblem: huggingface_hub is missing.
    """
    if read_env().offline:
        raise AccessError(code="X653", message="HF_HUB_OFFLINE is set: nothing can be pushed", hint="unset it")
    try:
        from huggingface_hub import get_token
    except ImportError as error:
        raise EnvironmentProblem(
            code="X654", message="pushing needs the package huggingface_hub", hint='pip install "luthier[train]"'
        ) from error
    token = get_token()
    if not token:
        raise AccessError(
            code="X644",
            message="there is no token for the Hub",
            hint="set HF_TOKEN, or `hf auth login`; a recipe or a command line is no place for it",
        )
    return token


def remote_card(settings: PushSettings, token: str) -> tuple[str, str] | None:
    """(text, git's SHA-1) of README.md as it is there; None if repository, branch or file do not exist."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with explained(settings.repo_id, token=token, where=api.endpoint):
        try:
            api.repo_info(
                settings.repo_id, revision=settings.revision
            )  # not retried: a server that is down says so soon
            there = _tree(api, settings)
        except Exception as error:
            if getattr(getattr(error, "response", None), "status_code", None) == 404:
                return None
            raise
        if "README.md" not in there:
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = api.hf_hub_download(settings.repo_id, "README.md", revision=settings.revision, local_dir=folder)
            return Path(path).read_text("utf-8", errors="replace"), there["README.md"][1]


def push_files(files: list[PushFile], settings: PushSettings, *, token: str, staging: Path) -> PushResult:
    """Push files; see the module.

    Args:
        files: of `collect`.
        settings: where to.
        token: with write access.
        staging: folder in which links to the files are laid while they are sent; on any disk, it takes no space.

    Raises:
        AccessError, RecipeError, EnvironmentProblem: as `explained`.
        RecipeError: the repository exists and is public, and `private` is asked for.
        RunFailed: what arrived is not what was sent.
    """
    from huggingface_hub import HfApi

    if not REPO_ID.fullmatch(settings.repo_id) or "--" in settings.repo_id or ".." in settings.repo_id:
        raise RecipeError(code="X652", message=f"{settings.repo_id!r} is no id of a repository", hint="owner/name")
    api = HfApi(token=token, library_name="luthier")
    hashes = digest(files)
    with explained(settings.repo_id, token=token, where=api.endpoint):
        head = _open(api, settings)
        there = _tree(api, settings)
        differing = [file for file in files if not _same(there.get(file.name), file, hashes[file.name])]
        mine = {file.name for file in files}
        stale = [name for name in there if _SHARD.fullmatch(name) and name not in mine and _holds_model(mine)]
        if differing or stale:
            size = sum(file.size for file in differing)
            note(f"  sending {len(differing)} of {len(files)} files, {size / 2**20:,.1f} MiB")
            with _staged(differing, staging) as folder:
                api.upload_folder(
                    repo_id=settings.repo_id, folder_path=folder, revision=settings.revision,
                    commit_message=settings.message, parent_commit=head or None,
                    allow_patterns=[glob.escape(file.name) for file in differing] or [""],
                    delete_patterns=[glob.escape(name) for name in stale] or None,
                )  # fmt: skip
        after = _tree(api, settings) if differing or stale else there
        commit = str(api.repo_info(settings.repo_id, revision=settings.revision).sha)
    lost = [file.name for file in files if not _same(after.get(file.name), file, hashes[file.name])]
    if lost:
        raise RunFailed(
            code="X658", message=f"{settings.repo_id}: not there, or not the same, after the push: {', '.join(lost)}",
            hint="push again; a .gitignore in the repository may keep them out",
        )  # fmt: skip
    return PushResult(
        repo_id=settings.repo_id, url=f"{api.endpoint}/{settings.repo_id}", revision=settings.revision, commit=commit,
        changed=commit != head, sent=[file.name for file in differing], removed=stale,
        unchanged=len(files) - len(differing), others=sorted(set(after) - mine),
        card=hashes["README.md"][1] if "README.md" in hashes else "",
    )  # fmt: skip


def _open(api: Any, settings: PushSettings) -> str:
    """Make repository and branch where they are missing; returns the head of the branch."""
    api.create_repo(settings.repo_id, private=settings.private, exist_ok=True)
    info = api.repo_info(settings.repo_id)
    if settings.private and info.private is False:
        raise RecipeError(
            code="X656", message=f"{settings.repo_id} exists and is public, and this push is to be private",
            hint="push to another repository, make that one private, or say --public (private: false)",
        )  # fmt: skip
    if settings.revision == "main":
        return str(info.sha or "")
    api.create_branch(settings.repo_id, branch=settings.revision, exist_ok=True)
    return str(api.repo_info(settings.repo_id, revision=settings.revision).sha or "")


def _tree(api: Any, settings: PushSettings) -> dict[str, tuple[int, str, str | None]]:
    """Name -> (size, git's SHA-1, sha256 of a large file) of what is there."""
    found = api.list_repo_tree(settings.repo_id, recursive=True, revision=settings.revision)
    return {
        item.path: (item.size, item.blob_id, item.lfs.sha256 if item.lfs else None)
        for item in found
        if hasattr(item, "blob_id")
    }


def _same(there: tuple[int, str, str | None] | None, file: PushFile, hashes: tuple[str, str]) -> bool:
    if there is None or there[0] != file.size:
        return False
    return there[2] == hashes[0] if there[2] else there[1] == hashes[1]


def _holds_model(names: set[str]) -> bool:
    """A whole model is pushed, so weights of another split beside it are left over."""
    return any(_SHARD.fullmatch(name) for name in names)


@contextmanager
def _staged(files: list[PushFile], staging: Path) -> Iterator[Path]:
    """A folder with links to the files, and the changed copies."""
    folder = tempfile.TemporaryDirectory(prefix=TEMP_PREFIX + "push-", dir=staging)
    with folder as name:
        try:
            for file in files:
                place = Path(name) / file.name
                place.parent.mkdir(parents=True, exist_ok=True)
                if file.data is None:
                    place.symlink_to(file.path.resolve())
                else:
                    place.write_bytes(file.data)
        except OSError as error:
            raise explain_os_error(error, staging) from error
        yield Path(name)
