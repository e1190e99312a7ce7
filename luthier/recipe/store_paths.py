"""Paths of rows in object stores and on web servers: `s3://bucket/rows/*.jsonl`. Texts only; nothing is fetched here.

Keys and tokens never belong into a path: a recipe is copied into its run folder and its paths into the manifest.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

__all__ = ["STORE_PACKAGES", "store_problem", "store_scheme"]

STORE_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "https": "aiohttp",
    "http": "aiohttp",
    "memory": "fsspec",
}
"""Scheme of a path -> package that brings its file system to fsspec. `memory` lives as long as the process."""
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CONTAINER_SCHEMES = {"abfs", "abfss", "az"}  # container@account is no credential
_SECRET_NAMES = re.compile(r"sig(nature)?$|token|secret|passw|credential|key|^auth", re.IGNORECASE)
_ENVIRONMENT = "keys belong into the environment (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_...)"


def store_scheme(text: str) -> str | None:
    """`s3` of `s3://bucket/key`, in small letters; None for anything that is no URL."""
    match = _URL.match(text)
    return match.group(1).lower() if match else None


def store_problem(text: str) -> tuple[str, str, bool] | None:
    """What is wrong with a URL of rows: message, hint, and whether the text may be shown. None: nothing is."""
    scheme = store_scheme(text) or ""
    if scheme not in STORE_PACKAGES:
        known = ", ".join(f"{name}://" for name in STORE_PACKAGES if name != "memory")
        hint = {
            "file": "write the path without file://",
            "hf": "a data set of the hub is called by its id, owner/name",
        }.get(scheme, "download the files and name them, or copy them to one of these")
        return f"rows are not read from {scheme}://; known are {known}", hint, True
    if "::" in text:
        return "chains of file systems (`::`) are not read", "name the file itself", False
    parts = urlsplit(text)
    user, at, _ = parts.netloc.rpartition("@")
    if at and (":" in user or scheme not in _CONTAINER_SCHEMES):
        return "the path holds a user name or a password, and paths are written into manifests", _ENVIRONMENT, False
    secret = next((name for name, _ in parse_qsl(parts.query) if _SECRET_NAMES.search(name)), None)
    if secret is not None:
        message = f"the path holds a credential (`{secret}=...`), and paths are written into manifests"
        return message, f"{_ENVIRONMENT}; or download the file", False
    if not parts.netloc and not parts.path.strip("/"):
        return "the path names nothing in the store", f"for instance {scheme}://bucket/rows/*.jsonl", True
    if scheme in {"http", "https"} and re.search(r"[*\[]", parts.path):
        return "a web server does not list its files", "name one file, or use an object store", True
    return None
