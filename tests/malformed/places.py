"""Work directories that cannot be, that are in use, and names that no file can hold."""

from pathlib import Path

from malformed.case import Call, Case, changed, problem, ran
from malformed.files import into
from problems import digits_problem, nudge

from fedjax_het import experiment
from fedjax_het.simulation.lock import locked
from fedjax_het.simulation.simulate import simulate


def looped(here: Path) -> None:
    (here / "run").symlink_to("loop")
    (here / "loop").symlink_to("run")


def held(here: Path) -> None:
    """Trains into the directory of a run that goes on."""
    with locked(here / "run"):
        experiment.train(changed(), here / "run", problem())


def trained_in(workdir: str) -> Call:
    return lambda here: experiment.train(changed(), workdir, problem())


def seeds_in(workdir: str) -> None:
    base = digits_problem()
    simulate(nudge(base), base, rounds=1, seeds=(0, 1), workdir=workdir)


NO_PLACE = "workdir = '' | must name a directory | leave workdir out"
CASES: list[Case] = [
    (trained_in(""), NO_PLACE),
    (
        lambda here: seeds_in(""),
        f"{NO_PLACE}, or write '.'",
    ),
    (
        lambda here: experiment.compare([changed()], ""),
        f"{NO_PLACE}, or write '.' for the current",
    ),
    (lambda here: experiment.report(""), f"{NO_PLACE}, or write '.' for the current directory"),
    (trained_in("a\0b"), "workdir = 'a\\x00b' | without NUL | another name"),
    (trained_in("a\udc80"), "workdir = 'a\\udc80' | surrogate pairs | another name"),
    (into(looped), "run' | cannot be made (Too many levels | remove the loop"),
    (
        lambda here: experiment.train(changed(), here / ("x" * 300), problem()),
        "xxx' | cannot be made (File name too long) | shorter name",
    ),
    (
        lambda here: experiment.compare([changed()], here / ("x" * 300)),
        "xxx': cannot be made | (File name too long) | shorter name",
    ),
    (held, "run' | in use by process | close the earlier simulation"),
    (ran(name="a\udc80"), "name = 'a\\udc80' | surrogate pairs | characters of Unicode"),
    (ran(name="x" * 201), "name of 201 characters | at most 200 | shorter one"),
]
