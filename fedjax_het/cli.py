"""The command line, `fedjax-het train|compare|sweep|plan|profile|report`; as in `launch/`.

Input errors, on the command line or in a file, end a program with one line and exit status 2. Any
other error is a fault of the program and keeps its traceback.
"""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from fedjax_het import __version__, experiment
from fedjax_het.common.errors import InputError, require, require_known
from fedjax_het.common.jsonio import jsonable
from fedjax_het.common.writing import usable_path
from fedjax_het.fleet import profile as profiles
from fedjax_het.report import preview as previews
from fedjax_het.report.records import RunRecord
from fedjax_het.report.units import number
from fedjax_het.runtime import processes, workers
from fedjax_het.simulation.lock import InUseError, locked


def _config_flag(flag_values: flags.FlagValues) -> None:
    config_flags.DEFINE_config_file(
        "config",
        None,
        "File with get_config(); its options are set as --config.section.option=value.",
        lock_config=False,
        accept_new_attributes=True,
        flag_values=flag_values,
    )
    flags.mark_flag_as_required("config", flag_values)


def _workers_flag() -> None:
    flags.DEFINE_integer(
        "workers", 1, "Processes on this machine that share the runs.", lower_bound=1
    )


def _start_workers(values: flags.FlagValues, place: Path | None) -> None:
    """Lets `--workers` processes do the runs; this one writes the comparison to `place`, if any."""
    workers.require_cores(values.workers)
    if values.workers > 1:
        with contextlib.ExitStack() as stack:
            # Whoever holds the directory writes the comparison.
            with contextlib.suppress(InUseError):
                if place is not None:
                    stack.enter_context(locked(place))
            workers.run(values.workers, values.workdir)


def _run(program: Callable[[flags.FlagValues], None], define: Callable[[Any], None]) -> None:
    define(flags.FLAGS)

    def main(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            # The checkpoint library reports every step of its work at the info level.
            logging.set_verbosity(logging.WARNING)
        if isinstance(sys.stdout, io.TextIOWrapper):
            # The last line of a run must not fail because a terminal cannot show a character.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            if len(argv) > 1:
                raise InputError(f"argument {argv[1]!r}: is not a flag; write --name=value")
            program(flags.FLAGS)
        except InputError as error:
            _refuse(error)

    app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    # If an option is overridden, a configuration file that is missing or not Python fails here.
    except (flags.Error, OSError, SyntaxError) as error:
        _refuse(error)
    except KeyError as error:
        _refuse(
            InputError(
                f"override of --config: {error.args[0]}: is not in the file; write "
                "--config.section.option=value for one of its sections"
            )
        )


def _refuse(error: Exception) -> NoReturn:
    print("error:", *str(error).split(), file=sys.stderr)
    sys.exit(2)


def _config(values: flags.FlagValues) -> dict[str, Any]:
    """The configuration with its overrides."""
    path = config_flags.get_config_filename(values["config"]).partition(":")[0]
    if not os.path.isfile(path):
        raise InputError(f"--config={path}: is not a file; name one of configs/")
    return experiment.plain(values.config)


def train() -> None:
    """Runs one configuration: `--config=FILE [--config.run.rounds=50 ...] --workdir=DIR`."""

    def define(flag_values: flags.FlagValues) -> None:
        _config_flag(flag_values)
        flags.DEFINE_string("workdir", None, "Where records, checkpoints and report go.")
        flags.mark_flag_as_required("workdir", flag_values)
        flags.DEFINE_bool("distributed", False, "Be one of several processes, as a cluster says.")
        flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of several processes.")
        flags.DEFINE_integer("num_processes", None, "How many processes there are.")
        flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")

    def program(values: flags.FlagValues) -> None:
        where = (values.coordinator, values.num_processes, values.process_id)
        if values.distributed or where != (None, None, None):
            processes.join(*where)

        def announce(settings: dict[str, Any]) -> None:
            if processes.is_leader():
                print(json.dumps(jsonable(settings), indent=2), flush=True)

        result = experiment.train(_config(values), values.workdir, announce=announce)
        if processes.is_leader():
            print(_outcome(result.record, values.workdir))

    _run(program, define)


def _outcome(record: RunRecord, workdir: str) -> str:
    summary, metric = record.summary, record.metric
    final, best = (_score(value, metric.share) for value in (record.final, record.best))
    lines = [
        f"{summary['name']}: {summary['steps']} rounds, {summary['virtual_s']:.4g} virtual s, "
        f"{summary['wall_s']:.1f} s wall and {summary['compile_s']:.1f} s compiling",
        f"test {metric.label} {final} (best {best})",
    ]
    for target in summary["targets"]:
        when = target["virtual_s"]
        reached = "not reached" if when is None else f"after {when:.4g} virtual s"
        lines.append(f"  {metric.target(target[metric.name])}: {reached}")
    return "\n".join([*lines, f"report: {workdir}/report.html"])


def _score(value: float | None, share: bool) -> str:
    """A value of the target metric; a share as a fraction."""
    return f"{value:.4f}" if share and value is not None else number(value)


def compare() -> None:
    """Runs methods and seeds side by side: `--config=FILE [--more=FILE,...] [--seeds=0,1,2]`."""

    def define(flag_values: flags.FlagValues) -> None:
        _config_flag(flag_values)
        flags.DEFINE_list("more", [], "Further configuration files on the same data and fleet.")
        flags.DEFINE_list("seeds", None, "Seeds, in place of those of the configuration.")
        flags.DEFINE_string("workdir", None, "Where the runs and the comparison go.")
        flags.mark_flag_as_required("workdir", flag_values)
        _workers_flag()

    def program(values: flags.FlagValues) -> None:
        configs = [_config(values), *(experiment.load_config(path) for path in values.more)]
        try:
            seeds = None if values.seeds is None else [int(seed) for seed in values.seeds]
        except ValueError as error:
            raise InputError(
                f"--seeds={','.join(values.seeds)}: must be whole numbers; write --seeds=0,1,2"
            ) from error
        _start_workers(values, usable_path(values.workdir, "workdir"))
        result = experiment.compare(configs, values.workdir, seeds)
        print(f"\n{result.headline}\n\n{result.table()}\n\nreport: {values.workdir}/report.html")

    _run(program, define)


def sweep() -> None:
    """Tunes every method: `--config=FILE --workdir=DIR [--workers=N] [--then_compare]`."""

    def define(flag_values: flags.FlagValues) -> None:
        _config_flag(flag_values)
        flags.DEFINE_string("workdir", None, "Where the trials and the best options go.")
        flags.mark_flag_as_required("workdir", flag_values)
        flags.DEFINE_bool("then_compare", False, "Also compare the methods at their best options.")
        _workers_flag()

    def program(values: flags.FlagValues) -> None:
        from fedjax_het.sweeps import sweep  # a command has this name

        settings = _config(values)
        place = usable_path(values.workdir, "workdir") / "comparison"
        _start_workers(values, place if values.then_compare else None)
        found = sweep(settings, values.workdir)
        print(f"\n{found.table()}\n")
        if values.then_compare:
            result = experiment.compare([found.tuned], place)
            print(f"{result.headline}\n\n{result.table()}\n\nreport: {place}/report.html")

    _run(program, define)


def plan() -> None:
    """Prints and plots a run's deadlines and batches, untrained: `--config=FILE [--out=DIR]`."""

    def define(flag_values: flags.FlagValues) -> None:
        _config_flag(flag_values)
        flags.DEFINE_string("out", None, "Directory for the figure and the numbers.")

    def program(values: flags.FlagValues) -> None:
        print(previews.text(experiment.plan(_config(values), values.out)))

    _run(program, define)


def profile() -> None:
    """Prints the cost table of a configuration's model, analytic beside measured."""

    def define(flag_values: flags.FlagValues) -> None:
        _config_flag(flag_values)
        flags.DEFINE_integer("batch", 32, "Samples per measured step.", lower_bound=1)
        flags.DEFINE_bool("measure", True, "Also time every block on this machine.")
        flags.DEFINE_string("out", None, "Save the measured profile here, as JSON.")

    def program(values: flags.FlagValues) -> None:
        if values.out:
            out = f"--out={values.out}"
            require(values.measure, out, "needs a measurement to save", "drop --nomeasure")
            require(
                Path(values.out).parent.is_dir(), out, "must be in a directory", "make it first"
            )
        problem = experiment.build_problem(_config(values))
        measured = profiles.measure(problem.model, values.batch) if values.measure else None
        print(profiles.format_table(problem.cost, measured))
        if measured is not None and values.out:
            measured.save(values.out)

    _run(program, define)


def report() -> None:
    """Rebuilds the page of a run or comparison: `--workdir=DIR`."""

    def define(flag_values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "Directory that train or compare wrote to.")
        flags.mark_flag_as_required("workdir", flag_values)

    def program(values: flags.FlagValues) -> None:
        print(experiment.report(values.workdir))

    _run(program, define)


COMMANDS = {f.__name__: f for f in (train, compare, sweep, plan, profile, report)}


def main() -> None:
    """Entry point of `fedjax-het`."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("--help", "-h"):
        print("\n".join(f"fedjax-het {name}: {f.__doc__}" for name, f in COMMANDS.items()))
        sys.exit(0)
    if command == "--version":
        print(f"fedjax-het {__version__}")
        sys.exit(0)
    try:
        require_known(command, COMMANDS, "command")
    except InputError as error:
        _refuse(error)
    sys.argv = [f"fedjax-het {command}", *sys.argv[2:]]
    COMMANDS[command]()
