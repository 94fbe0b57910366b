"""Freed memory stays with the process, so that the next program need not fault it in again.

glibc hands every block above 32 MB back to the kernel as soon as it is freed. The temporaries of a
training program are such a block: every call would have each of its pages cleared and mapped anew.
With a model of 7 MB these are 12,000 pages, half as long as a client's two local steps take.
"""

import ctypes
import functools
import os
import sys

# mallopt's numbers (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# The largest value that mallopt takes, an int.
_MOST_BYTES = 2**31 - 1


@functools.cache
def keep_freed() -> bool:
    """Keeps freed blocks below 2 GiB in the process from now on; returns whether it can.

    Only glibc can be told; elsewhere, and where the environment sets `MALLOC_*`, nothing changes.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, _MOST_BYTES) == 1 for name in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
