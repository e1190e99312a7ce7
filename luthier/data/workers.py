"""Rows tokenised by several processes at once; outcomes in order, the same as from one process.

Proving and rendering is Python, which one process runs on one core. Rows go to forked workers some hundred at a time,
and only a few such chunks are under way at once, so that memory stays bounded.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

from luthier.data.template import ChatTemplate
from luthier.data.tokenize import Tokenized
from luthier.data.types import Conversation
from luthier.recipe.schema import DataSection
from luthier.runtime.console import note
from luthier.runtime.env import read_env, variable
from luthier.runtime.errors import DataError, Problem

__all__ = ["CHUNK_ROWS", "tokenize_chunks", "worker_count"]

CHUNK_ROWS = 256
_ALONE_CHUNKS = 40
"""Below about ten thousand rows the workers take as long to start as they save."""
_MOST_WORKERS = 16
_UNDER_WAY = 3
"""Chunks per worker that wait or are worked on."""

Tokenize = Callable[..., Iterator[Tokenized]]
Chunk = Sequence[Conversation]
_job: tuple[Tokenize, ChatTemplate, DataSection] | None = None
"""What a worker does; set before it is forked."""


def worker_count() -> int:
    """Workers beside this process, which reads, and tokenises too when they fall behind.

    0: there is no `fork`, or one core for each process.
    """
    if "fork" not in multiprocessing.get_all_start_methods() or not hasattr(os, "sched_getaffinity"):
        return 0
    cores = len(os.sched_getaffinity(0)) // max(1, read_env().world_size)
    return min(_MOST_WORKERS, max(1, cores - 1)) if cores > 1 else 0


def tokenize_chunks(
    chunks: Iterable[Chunk], tokenize: Tokenize, template: ChatTemplate, section: DataSection
) -> Iterator[list[Tokenized]]:
    """The outcomes of each chunk, in order; the first chunks are done by this process.

    Raises:
        DataError: the tokenizer or its template cannot be used at all.
    """
    rest = iter(chunks)
    for chunk in islice(rest, _ALONE_CHUNKS):
        yield list(tokenize(chunk, template, section=section))
    workers = worker_count()
    following = next(rest, None) if workers else None
    if following is None:
        for chunk in rest:
            yield list(tokenize(chunk, template, section=section))
        return
    yield from _by_workers(chain([following], rest), tokenize, template, section, workers)


def _by_workers(
    chunks: Iterator[Chunk], tokenize: Tokenize, template: ChatTemplate, section: DataSection, workers: int
) -> Iterator[list[Tokenized]]:
    waiting: deque[tuple[Chunk, Future[Any]]] = deque()
    most, broken = workers * _UNDER_WAY, False

    def done(chunk: Chunk, future: Future[Any]) -> list[Tokenized]:
        nonlocal broken
        try:
            outcome = future.result()
        except BrokenProcessPool:
            if not broken:
                note("warning: a worker process died; this process does its rows", style="yellow")
            broken = True
            return list(tokenize(chunk, template, section=section))
        if isinstance(outcome, _Failed):
            raise DataError(problems=outcome.problems)
        found: list[Tokenized] = outcome
        return found

    with _pool(workers, tokenize, template, section) as pool:
        for chunk in chunks:
            if broken:
                yield from (done(*entry) for entry in _drained(waiting))
                yield list(tokenize(chunk, template, section=section))
                continue
            if len(waiting) >= most and not waiting[0][1].done():
                # Reading is ahead of the workers: this process does a chunk too, rather than wait.
                own: Future[Any] = Future()
                own.set_result(list(tokenize(chunk, template, section=section)))
                waiting.append((chunk, own))
            else:
                waiting.append((chunk, _submitted(pool, chunk)))
            while len(waiting) >= most and (waiting[0][1].done() or len(waiting) >= 2 * most):
                yield done(*waiting.popleft())
        yield from (done(*entry) for entry in _drained(waiting))


def _submitted(pool: ProcessPoolExecutor, chunk: Chunk) -> Future[Any]:
    try:
        return pool.submit(_work, chunk)
    except BrokenProcessPool:
        failed: Future[Any] = Future()
        failed.set_exception(BrokenProcessPool())
        return failed


def _drained(waiting: deque[tuple[Chunk, Future[Any]]]) -> Iterator[tuple[Chunk, Future[Any]]]:
    while waiting:
        yield waiting.popleft()


@contextmanager
def _pool(
    workers: int, tokenize: Tokenize, template: ChatTemplate, section: DataSection
) -> Iterator[ProcessPoolExecutor]:
    """Forked workers that know the template; the Rust tokenizer's own threads are off in them, which could deadlock."""
    global _job
    _job = (tokenize, template, section)
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"))
    with variable("TOKENIZERS_PARALLELISM", "false"):
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            _job = None


class _Failed:
    """What went wrong in a worker."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)


def _work(chunk: Chunk) -> list[Tokenized] | _Failed:
    assert _job is not None
    tokenize, template, section = _job
    try:
        return list(tokenize(chunk, template, section=section))
    except DataError as error:
        return _Failed(error.problems)
