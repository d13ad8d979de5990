"""What a step frees stays with the process, for the next step.

The C library gives large blocks back to the kernel, which clears each page that it is asked for
anew: where steps have different sizes, as those of packs, that took up to a third of their time.
"""

import ctypes

# Of mallopt(3) in glibc; other C libraries have none of it.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER, _NO_BLOCK = -1, 0


def keep_freed() -> None:
    """From now on memory of this process grows to what it needs at most, and is used again."""
    allocator = getattr(ctypes.CDLL(None), "mallopt", None)
    if allocator is not None:
        allocator(_TRIM_THRESHOLD, _NEVER)
        allocator(_MMAP_MAX, _NO_BLOCK)
