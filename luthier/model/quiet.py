"""Libraries that talk while they load are asked to be quiet; our own checks say what matters."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["first_line", "quiet_libraries"]


def first_line(error: BaseException) -> str:
    """The first line of an error's text, at most 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars and no advice from transformers while we load: our own checks say what matters."""
    from transformers.utils import logging as hf_logging

    bars = hf_logging.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("transformers", "bitsandbytes")]
    levels = [logger.level for logger in loggers]
    hf_logging.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _deepspeed_told():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            hf_logging.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _deepspeed_told() -> Iterator[None]:
    """DeepSpeed, where it is installed, is imported by accelerate when a model is saved, and warns of a machine without
    a GPU unless it has been told so; it is told for that import."""
    import torch

    if "DS_ACCELERATOR" in os.environ or torch.cuda.is_available():
        yield
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        yield
    finally:
        os.environ.pop("DS_ACCELERATOR", None)
