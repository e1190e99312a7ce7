"""One thread (bitwise checks need it) and no progress bars."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def one_quiet_thread():
    import torch

    from luthier.runtime.console import set_quiet

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    set_quiet(True)
    yield
    set_quiet(False)
    torch.set_num_threads(threads)
