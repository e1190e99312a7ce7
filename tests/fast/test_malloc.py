"""Contract: freed memory stays with the process on glibc, and elsewhere the report says why not."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from luthier.runtime import malloc

# What glibc itself says of one 40 MiB block: mapped on its own while alive? kept by the process once freed?
STORY = """
import ctypes, sys
from luthier.runtime.malloc import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()[0]
libc = ctypes.CDLL(None)
fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in fields]
libc.mallinfo2.restype = Info
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
before = libc.mallinfo2().hblkhd
block = libc.malloc(40 << 20)
mapped = libc.mallinfo2().hblkhd - before
libc.free(block)
print(mapped >> 20, libc.mallinfo2().fordblks >> 20)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33 or later only")
def test_a_large_block_stays_with_the_process_after_it_is_freed():
    def story(mode):
        done = subprocess.run([sys.executable, "-c", STORY, mode], check=True, capture_output=True, text=True)
        return [int(word) for word in done.stdout.split()]

    mapped, kept = story("keep")
    assert mapped == 0
    assert kept >= 40
    mapped, kept = story("leave")
    assert mapped >= 40
    assert kept < 40


def test_another_system_is_told_apart(monkeypatch):
    monkeypatch.setattr(malloc.sys, "platform", "darwin")
    done, why = malloc.keep_freed_memory()
    assert not done
    assert "darwin" in why
