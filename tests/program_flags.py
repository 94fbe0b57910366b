"""Flags of programs, which a process defines once, in a process that runs several."""

import contextlib

from absl import flags


@contextlib.contextmanager
def of_one_program():
    """Inside, no flag of a benchmark is known; what is defined inside is forgotten afterwards."""
    modules = flags.FLAGS.flags_by_module_dict()
    hidden = [(name, f) for name, own in modules.items() for f in own if "benchmarks" in name]
    for _, flag in hidden:
        delattr(flags.FLAGS, flag.name)
    before = set(flags.FLAGS)
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        for module, flag in hidden:
            flags.FLAGS[flag.name] = flag
            flags.FLAGS.register_flag_by_module(module, flag)
        flags.FLAGS.unparse_flags()
