"""One attempt: POST a JSON body, read the whole answer within a deadline.

Standard library only. No redirect is followed: it would carry the key to another host. Proxies are those of the
environment (`urllib`). What can go wrong is a `Fault` that says whether another attempt makes sense.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from typing import IO, Any

__all__ = ["Answer", "Fault", "Stream", "get_json", "open_stream", "post_bytes", "post_json"]

MAX_ANSWER_BYTES = 64 << 20
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: any status, the whole body."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class Fault(Exception):
    """No answer: the connection failed, broke off, or took too long."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.again = again
        """Another attempt makes sense."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def post_json(url: str, value: Any, *, headers: Mapping[str, str], timeout: float) -> Answer:
    """Send a JSON value, and read the answer whatever its status.

    Args:
        url: http or https.
        value: what to send.
        headers: besides the content type.
        timeout: seconds from connecting to the last byte.

    Raises:
        Fault: no whole answer came.
    """
    data = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    return post_bytes(url, data, headers=headers, timeout=timeout)


def post_bytes(url: str, data: bytes, *, headers: Mapping[str, str], timeout: float) -> Answer:
    """As `post_json`, for JSON that is bytes already (and signed, for instance)."""
    return _send(url, data, headers={"Content-Type": "application/json", **headers}, timeout=timeout)


def get_json(url: str, *, headers: Mapping[str, str], timeout: float) -> Answer:
    """As `post_json`, but GET."""
    return _send(url, None, headers=headers, timeout=timeout)


def _send(url: str, data: bytes | None, *, headers: Mapping[str, str], timeout: float) -> Answer:
    request = urllib.request.Request(url, data=data, headers={"Accept": "application/json", **headers})
    deadline = time.monotonic() + timeout
    try:
        with _OPENER.open(request, timeout=timeout) as response:
            return _read(response, response.status, deadline, timeout)
    except urllib.error.HTTPError as error:
        with error:
            return _read(error, error.code, deadline, timeout)
    except urllib.error.URLError as error:
        raise _fault(error.reason, timeout) from error
    except (OSError, http.client.HTTPException) as error:
        raise _fault(error, timeout) from error


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer of status 200 whose body is read as it comes."""

    content_type: str
    lines: Iterator[bytes]
    """Raises `Fault` if the connection fails, or nothing comes for `timeout` seconds."""


@contextmanager
def open_stream(url: str, value: Any, *, headers: Mapping[str, str], timeout: float) -> Iterator[Stream | Answer]:
    """Send a JSON value and read the answer line by line; a refusal comes as a whole `Answer`.

    Args:
        url: http or https.
        value: what to send.
        headers: besides the content type.
        timeout: longest pause in seconds, up to the first byte and between two.

    Raises:
        Fault: the connection failed.
    """
    data = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    accepted = {"Content-Type": "application/json", "Accept": "text/event-stream, application/json", **headers}
    request = urllib.request.Request(url, data=data, headers=accepted)
    try:
        response = _OPENER.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            yield _read(error, error.code, time.monotonic() + timeout, timeout)
        return
    except urllib.error.URLError as error:
        raise _fault(error.reason, timeout) from error
    except (OSError, http.client.HTTPException) as error:
        raise _fault(error, timeout) from error
    with response:
        yield Stream(response.headers.get("Content-Type", ""), _lines(response, timeout))


def _lines(response: Any, timeout: float) -> Iterator[bytes]:
    size = 0
    try:
        while line := response.readline(MAX_ANSWER_BYTES):
            size += len(line)
            if size > MAX_ANSWER_BYTES:
                raise Fault(f"the answer is larger than {MAX_ANSWER_BYTES >> 20} MiB", again=False)
            yield line
    except (OSError, http.client.HTTPException) as error:
        raise _fault(error, timeout) from error


def _read(response: Any, status: int, deadline: float, timeout: float) -> Answer:
    """The whole body; a server that sends a byte a minute does not outlive the deadline."""
    blocks: list[bytes] = []
    size = 0
    try:
        while block := response.read1(_BLOCK):
            blocks.append(block)
            size += len(block)
            if size > MAX_ANSWER_BYTES:
                raise Fault(f"the answer is larger than {MAX_ANSWER_BYTES >> 20} MiB", again=False)
            if time.monotonic() > deadline:
                raise Fault(f"the answer took longer than {timeout:g} s", again=True)
    except (OSError, http.client.HTTPException) as error:
        raise _fault(error, timeout) from error
    headers = {name.lower(): text for name, text in response.headers.items()}
    announced = headers.get("content-length", "")
    if announced.isdigit() and size < int(announced):
        raise Fault(f"the connection broke off after {size} of {announced} bytes", again=True)
    return Answer(status, headers, b"".join(blocks))


def _fault(error: Any, timeout: float) -> Fault:
    if isinstance(error, ssl.SSLCertVerificationError):
        return Fault(f"its certificate is not valid: {error.verify_message}", again=False)
    if isinstance(error, TimeoutError):
        return Fault(f"no answer within {timeout:g} s", again=True)
    if isinstance(error, socket.gaierror):
        return Fault(f"its name cannot be resolved: {error.strerror}", again=True)
    if isinstance(error, http.client.IncompleteRead):
        return Fault("the connection broke off within the answer", again=True)
    if isinstance(error, http.client.InvalidURL):
        return Fault(f"not a URL: {error}", again=False)
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Fault(f"the connection failed: {said}", again=True)
