"""Freed memory is kept by the process, so that the next program need not map it again.

glibc returns every allocation above 32 MB to the kernel as soon as it is freed. The temporaries of
a training program are such an allocation: in every call, the kernel would clear and map each of its
pages again. With a model of 7 MB these are 12,000 pages, which take half as long as two local steps
of a client.
"""

import ctypes
import functools
import os
import sys

# Parameter numbers of mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# The largest value that mallopt takes, an int.
_MOST_BYTES = 2**31 - 1


@functools.cache
def keep_freed() -> bool:
    """Keeps freed allocations below 2 GiB in the process from now on; returns whether it can.

    This works with glibc only. With other libraries, or if the environment sets `MALLOC_*`, nothing
    changes.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(name, _MOST_BYTES) == 1 for name in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
