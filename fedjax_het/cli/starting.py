"""`fedjax-het init`: a commented configuration for a file of one's own."""

import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from fedjax_het.cli.running import Command
from fedjax_het.common.errors import require

_PARTS = {
    "label": "Column or array of the labels; left out, it is guessed from its name.",
    "client": "Column or array that says whose a sample is; left out, it is guessed.",
    "split": "Column with train and test; left out, it is guessed.",
}


def _flags(flag_values: flags.FlagValues) -> None:
    for name, told in _PARTS.items():
        flags.DEFINE_string(name, None, told, flag_values=flag_values)
    told = "File of the configuration; left out, FILE with the ending .py."
    flags.DEFINE_string("out", None, told, flag_values=flag_values)


def _init(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    path = Path(arguments[0])
    out = path.with_suffix(".py") if values.out is None else Path(values.out)
    require(out.suffix == ".py", f"--out={out}", "must end in .py", "a configuration is Python")
    require(not os.path.lexists(out), str(out), "is there already", "name another file with --out")
    from fedjax_het.cli import looking, template
    from fedjax_het.common.writing import encoded, write_atomic

    flagged = {name: values[name].value for name in _PARTS}
    given = {name: str(value) for name, value in flagged.items() if value is not None}
    found = looking.look(path, given)
    write_atomic(out, encoded(template.text(found, out)), f"--out={out}")
    for part, name in found.parts.items():
        print(f"{part}: {name}" + ("" if part in given else " (guessed)"))
    print(f"configuration: {out}\nRead it, and correct what is not as it should be.")


init = Command(
    "init",
    "Writes a commented configuration for a CSV or .npz file of your own.",
    [
        "fedjax-het init hospitals.csv",
        "fedjax-het init hospitals.csv --label=outcome --client=hospital --out=study.py",
    ],
    _flags,
    _init,
    ["FILE"],
)
