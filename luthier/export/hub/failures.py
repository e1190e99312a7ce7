"""What a refusal of the Hub means, in Luthier's words and codes. No message holds the token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.runtime.atomic import explain_os_error
from luthier.runtime.errors import AccessError, LuthierError, RecipeError
from luthier.runtime.scrub import scrub

__all__ = ["explained"]

_TOKENS = "https://huggingface.co/settings/tokens"
_AGAIN = "run the same command again: what has arrived is not sent twice"


@contextmanager
def explained(repo_id: str, *, token: str | None, where: str) -> Iterator[None]:
    """Turn errors of `huggingface_hub` and of the network into Luthier's.

    Args:
        repo_id: for messages.
        token: taken out of every message.
        where: the server.

    Raises:
        AccessError: refused (X644 to X648), or not reachable (X649).
        RecipeError: the Hub does not take what was sent (X655).
        EnvironmentProblem: a file cannot be read, the disk is full.
    """
    try:
        yield
    except LuthierError:
        raise
    except Exception as error:
        found = _explain(error, repo_id, where)
        if found is None:
            raise
        for problem in found.problems:
            if token and token in problem.message:
                raise _hidden(found, token) from None
        raise found from (None if token and token in str(error) else error)


def _hidden(error: LuthierError, token: str) -> LuthierError:
    return type(error)(code=error.code, message=error.message.replace(token, "***"), hint=error.hint)


def _explain(error: BaseException, repo_id: str, where: str) -> LuthierError | None:
    for cause in _chain(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return _of_status(status, cause, repo_id, where)
    for cause in _chain(error):
        if type(cause).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
            return _unreachable(cause, where)
        if isinstance(cause, ConnectionError | TimeoutError):
            return _unreachable(cause, where)
        if isinstance(cause, OSError) and cause.errno is not None:
            return explain_os_error(cause, Path(cause.filename or "."))
    if isinstance(error, ValueError | RuntimeError):
        return RecipeError(code="X655", message=f"{repo_id}: {_said(error)}", hint="mend it, and push again")
    return None


def _of_status(status: int, error: Any, repo_id: str, where: str) -> LuthierError:
    said = _said(error)
    about = f"{where} answers {status} for {repo_id}: {said}"
    if status == 401:
        hint = f"make one with write access at {_TOKENS}, then HF_TOKEN=... or `hf auth login`"
        return AccessError(code="X644", message=f"the token is missing or refused: {about}", hint=hint)
    if status in (402, 403):
        hint = "is the owner right, has the token write access to it, is there storage left?"
        return AccessError(code="X645", message=f"you may not write there: {about}", hint=hint)
    if status == 404:
        hint = "check owner, name and revision; a private one of others looks like none"
        return AccessError(code="X646", message=f"not found: {about}", hint=hint)
    if status in (409, 412):
        return AccessError(code="X647", message=f"it was changed by somebody else meanwhile: {about}", hint=_AGAIN)
    if status == 429:
        wait = getattr(error.response, "headers", {}).get("retry-after")
        pause = f"wait {wait} s" if wait else "wait a few minutes"
        return AccessError(code="X648", message=f"too many requests: {about}", hint=f"{pause}, then {_AGAIN}")
    if status >= 500 or status == 408:
        return AccessError(code="X649", message=f"the server failed: {about}", hint=_AGAIN)
    return RecipeError(code="X655", message=f"the server does not take it: {about}", hint="mend it, and push again")


def _unreachable(error: BaseException, where: str) -> AccessError:
    return AccessError(
        code="X649", message=f"{where} cannot be reached: {_said(error)}", hint=f"check the network; {_AGAIN}"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _said(error: BaseException) -> str:
    """The server's own words if it has some, else the error's first line."""
    message = getattr(error, "server_message", None) or str(error) or type(error).__name__
    lines = [line.strip() for line in str(message).splitlines() if line.strip()]
    return scrub(" ".join(lines[:2]))[:300]
