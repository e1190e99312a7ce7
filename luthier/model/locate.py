"""From what a recipe says to a local folder: a path, the embedded model, or a hub snapshot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.runtime.env import read_env
from luthier.runtime.errors import AccessError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EMBEDDED_MODEL", "locate_model"]

EMBEDDED_MODEL = "smollm2-135m-instruct"
# Nothing that could be executed or unpickled is ever fetched, but Python files when the recipe trusts them.
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "vocab.txt", "merges.txt", "LICENSE*"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def locate_model(
    name_or_path: str,
    revision: str | None = None,
    *,
    key: str = "model.name_or_path",
    weights: bool = True,
    trust_remote_code: bool = False,
) -> Path:
    """The local folder of a model or tokenizer; downloads a hub model if it is not in the hub cache.

    Args:
        name_or_path: what the recipe says.
        revision: hub revision.
        key: where the recipe says it, for messages.
        weights: fetch them; a tokenizer needs none.
        trust_remote_code: fetch Python files, too.

    Raises:
        RecipeError: the path does not exist, or the name can be neither a path nor a hub id.
        AccessError: the hub cannot be reached, or refuses.
    """
    if name_or_path == EMBEDDED_MODEL:
        from luthier.model.embedded import ensure_smollm2

        return Path(ensure_smollm2(read_env().cache_dir))
    path = Path(name_or_path).expanduser()
    if name_or_path and path.is_dir():
        return path
    if name_or_path and path.exists():
        raise RecipeError(
            code="M301",
            message=f"`{key}` is the file {name_or_path}, not a folder",
            hint="give the folder that holds config.json",
        )
    if name_or_path.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name_or_path):
        raise RecipeError(
            code="M301",
            message=f"`{key}` is {name_or_path!r}: there is no such folder",
            hint="check the path, or give a hub id such as org/name",
        )
    files = [pattern for pattern in _HUB_FILES if weights or "safetensors" not in pattern]
    return _download(name_or_path, revision, key=key, files=[*files, "*.py"] if trust_remote_code else files)


def _download(repo: str, revision: str | None, *, key: str, files: list[str]) -> Path:
    """Snapshot of a hub repository; each way it can fail has its own message."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    fetch: Callable[..., str] = snapshot_download
    offline = read_env().offline
    try:
        return Path(fetch(repo, revision=revision, allow_patterns=files, local_files_only=offline))
    except GatedRepoError as error:
        message, hint = f"{repo} is gated", f"accept its terms at https://huggingface.co/{repo}, then `hf auth login`"
        raise AccessError(code="M313", message=f"`{key}`: {message}", hint=hint) from error
    except RevisionNotFoundError as error:
        raise AccessError(
            code="M313",
            message=f"`model.revision`: {repo} has no revision {revision!r}",
            hint="use a branch, tag or commit of that repository",
        ) from error
    except RepositoryNotFoundError as error:
        hint = "check the spelling; a private one needs `hf auth login`; for a local folder write ./NAME"
        raise AccessError(
            code="M313", message=f"`{key}`: there is no folder and no readable hub repository {repo!r}", hint=hint
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        why = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        hint = (
            "unset HF_HUB_OFFLINE, or give a local folder" if offline else "check the network, or give a local folder"
        )
        raise AccessError(
            code="M314", message=f"`{key}`: {repo!r} is no local folder, is not in the hub cache, and {why}", hint=hint
        ) from error
    except HFValidationError as error:
        raise RecipeError(
            code="M301", message=f"`{key}` is {repo!r}: neither a folder nor a hub id", hint="check the path"
        ) from error
    except (HfHubHTTPError, ConnectionError, TimeoutError) as error:
        raise AccessError(
            code="M313",
            message=f"`{key}`: the hub refused {repo!r}: {str(error).splitlines()[0][:200]}",
            hint="try again later, or `hf auth login`",
        ) from error
