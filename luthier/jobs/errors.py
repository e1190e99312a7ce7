"""Errors of the service: each says which HTTP status it is, and each problem which field of the request it is about."""

from __future__ import annotations

from dataclasses import dataclass, field

from luthier.runtime.errors import LuthierError, Problem

__all__ = [
    "Conflict",
    "Forbidden",
    "Invalid",
    "JobProblem",
    "LeaseLost",
    "NotFound",
    "ServiceError",
    "TooLarge",
    "TooMany",
    "escaped",
    "problem",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProblem(Problem):
    """One thing that is wrong with a request."""

    param: str | None = None
    """Field of the body, dotted: `method.dpo.hyperparameters.beta`."""


@dataclass(eq=False)
class ServiceError(LuthierError):
    """What the service refuses. Exit code 2; `status` is the HTTP status."""

    param: str | None = None
    retry_after: float | None = None
    """Seconds after which trying again makes sense."""
    status: int = field(default=400, init=False)

    def __post_init__(self) -> None:
        if not self.problems:
            self.problems = (problem(self.code, self.message, hint=self.hint, param=self.param),)
        self.exit_code = 2
        super().__post_init__()


class Invalid(ServiceError):
    """Wrong values in a request: 400, with all problems."""


class NotFound(ServiceError):
    """No such thing, or one of another owner; the two cannot be told apart: 404."""

    def __post_init__(self) -> None:
        self.status = 404
        super().__post_init__()


class Forbidden(ServiceError):
    """The key lacks the scope: 403."""

    def __post_init__(self) -> None:
        self.status = 403
        super().__post_init__()


class Conflict(ServiceError):
    """Not in this state; trying again changes nothing: 409 with `x-should-retry: false`."""

    def __post_init__(self) -> None:
        self.status = 409
        super().__post_init__()


class LeaseLost(Conflict):
    """A worker speaks for a job that is no longer its own: stop the child process, touch nothing."""


class TooLarge(ServiceError):
    """More bytes than allowed: 413."""

    def __post_init__(self) -> None:
        self.status = 413
        super().__post_init__()


class TooMany(ServiceError):
    """A limit of the key or of the address: 429, with `retry_after`."""

    def __post_init__(self) -> None:
        self.status = 429
        super().__post_init__()


def problem(code: str, message: str, *, param: str | None = None, hint: str | None = None) -> JobProblem:
    """A problem in one line. What a client sent stands in it: unprintable characters are escaped."""
    shown = {"message": escaped(message), "param": param and escaped(param), "hint": hint and escaped(hint)}
    return JobProblem(code=code, **shown)  # type: ignore[arg-type]


def escaped(text: str) -> str:
    """A text as one printable line that UTF-8 can hold."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode("ascii")
        for letter in text
    )
