"""Memory that was freed is used again, and not asked for anew."""

import subprocess
import sys

import pytest

BLOCK = 64 << 20  # bytes
COUNTED = f"""
import ctypes, resource
from siftune.throughput import memory

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def step():
    block = libc.malloc(ctypes.c_size_t({BLOCK}))
    ctypes.memset(block, 1, {BLOCK})
    libc.free(ctypes.c_void_p(block))

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

step()
given_back = faults()
memory.keep_freed()
step()
print(given_back, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_block_of_the_last_step_is_there_in_the_next() -> None:
    told = subprocess.run(
        [sys.executable, "-c", COUNTED], capture_output=True, text=True, check=True
    )
    given_back, kept = map(int, told.stdout.split())
    assert given_back >= BLOCK // 4096 // 512  # as huge pages, at least
    assert kept < given_back / 8
