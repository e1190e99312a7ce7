"""Data sets of the hub: `datasets` finds and downloads the files of a split, our own readers read them.

`datasets.load_dataset` itself is not used on purpose: its JSON reader turns strings that look like dates into
timestamps, adds null keys and accepts values of mixed types. The files say what the author wrote.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from luthier.data.files import DataFile, kind_of
from luthier.runtime.env import read_env
from luthier.runtime.errors import AccessError, DataError, EnvironmentProblem, Problem

__all__ = ["find_hub_files"]

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_hub_files(path: str, *, name: str | None, split: str, notes: Counter[str]) -> list[DataFile]:
    """Download the files of one split and tell where they are.

    With `HF_HUB_OFFLINE` set, the newest copy in the local cache is taken, with a note.

    Args:
        path: `owner/name`; a local folder works the same way.
        name: Configuration; needed when there are several.
        split: Whole split, such as `train`.
        notes: Gets what is worth knowing.

    Raises:
        AccessError: not reachable, not there, gated, or not in the cache while offline.
        DataError: no such configuration or split, or files of a kind that holds no rows of text.
        EnvironmentProblem: the `datasets` package is missing.
    """
    if not Path(path).is_dir() and not _ID.fullmatch(path):
        hint = "a data set on the hub is called `owner/name`; for a file, check the path"
        raise DataError(problems=[Problem(code="D200", message="no such file or folder", file=path, hint=hint)])
    builder, folder = _builder(path, name, notes)
    files = {str(key): list(urls) for key, urls in (builder.config.data_files or {}).items()}
    if split not in files:
        there = ", ".join(files) or "none"
        raise _wrong(
            path, f"no split `{split}`; it has: {there}", "set `split` to one of them; `limit` takes the first rows"
        )
    _refuse_options(path, builder)
    shown = [_shown(path, url, folder) for url in files[split]]
    for label in shown:
        kind_of(Path(label))
    return [
        DataFile(Path(local), kind_of(Path(label)), label)
        for local, label in zip(_download(path, files[split]), shown, strict=True)
    ]


def _builder(path: str, name: str | None, notes: Counter[str]) -> tuple[Any, str]:
    """The builder that knows which files belong to which split, and the local folder it looked at, if any."""
    datasets = _datasets()
    folder = path
    if read_env().offline and not Path(path).is_dir():
        folder = _cached_snapshot(path)
        notes[f"offline: `{path}` taken from the local cache, commit {Path(folder).name[:12]}"] += 1
    try:
        return datasets.load_dataset_builder(folder, name), folder
    except datasets.exceptions.DatasetNotFoundError as error:
        hint = "check the id; for a gated or private data set, ask for access and log in with `hf auth login`"
        raise _no_access(path, f"not found, or not open to you: {_first_line(error)}", hint) from error
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
        raise _wrong(path, _first_line(error), "set `name` to one of its configurations") from error
    except OSError as error:
        raise _no_access(path, f"the hub cannot be reached: {_first_line(error)}", _OFFLINE_HINT) from error


_OFFLINE_HINT = (
    "check the network; or download the files elsewhere (`hf download --repo-type dataset ID`) and give their path"
)


def _cached_snapshot(path: str) -> str:
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(path, repo_type="dataset", local_files_only=True))
    except OSError as error:
        message = "not in the local cache, and HF_HUB_OFFLINE is set"
        raise _no_access(path, message, _OFFLINE_HINT) from error


def _download(path: str, urls: list[str]) -> list[str]:
    try:
        return list(_datasets().DownloadManager().download(urls))
    except OSError as error:
        raise _no_access(path, f"download failed: {_first_line(error)}", _OFFLINE_HINT) from error


def _refuse_options(path: str, builder: Any) -> None:
    """Options an author can set that change how the files are read, and that our readers do not have."""
    defaults = {"field": None, "sep": (",", None), "delimiter": None, "skiprows": None, "column_names": None}
    for key, default in defaults.items():
        value = getattr(builder.config, key, None)
        if value is not None and value not in (default if isinstance(default, tuple) else (default,)):
            raise _wrong(
                path, f"its files are read with the option {key}={value!r}", "download them and give their path"
            )


def _shown(path: str, url: str, folder: str) -> str:
    """`owner/name/file` instead of a URL or a path inside a cache."""
    tail = url.split("@", 1)[-1].split("/", 1)[-1] if "://" in url else url
    if "://" not in url and Path(url).is_relative_to(Path(folder).absolute()):
        tail = str(Path(url).relative_to(Path(folder).absolute()))
    return f"{path}/{tail}"


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise EnvironmentProblem(
            code="R720", message="data sets of the hub need the `datasets` package", hint='pip install "luthier[train]"'
        ) from error
    return datasets


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _no_access(path: str, message: str, hint: str) -> AccessError:
    return AccessError(problems=[Problem(code="D216", message=message, file=path, hint=hint)])


def _wrong(path: str, message: str, hint: str) -> DataError:
    return DataError(problems=[Problem(code="D217", message=message, file=path, hint=hint)])
