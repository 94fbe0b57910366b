"""Flags of programs, which a process defines once, in a process that runs several."""

import contextlib

from absl import flags


@contextlib.contextmanager
def of_one_program():
    """What is defined inside is forgotten afterwards."""
    before = set(flags.FLAGS)
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
