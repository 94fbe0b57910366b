"""Disks that refuse, for tests of what is written; importable as `disk`."""

import contextlib
import os
import resource


@contextlib.contextmanager
def longest_file(size):
    """Lets no file of this process grow beyond a size, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refusing(code):
    """A function of the operating system that refuses with this error."""

    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    return refuse
