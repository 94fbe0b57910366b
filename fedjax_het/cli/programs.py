"""The commands that run, compare, plan, price and report."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from ml_collections import config_flags

from fedjax_het.cli.running import Command
from fedjax_het.common.errors import InputError, require

if TYPE_CHECKING:
    from fedjax_het.report.records import RunRecord


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


def _workdir_flag(flag_values: flags.FlagValues, told: str) -> None:
    flags.DEFINE_string("workdir", None, told, flag_values=flag_values)
    flags.mark_flag_as_required("workdir", flag_values)


def _config(values: flags.FlagValues) -> dict[str, Any]:
    """The configuration with its overrides."""
    path = config_flags.get_config_filename(values["config"]).partition(":")[0]
    if not os.path.isfile(path):
        raise InputError(f"--config={path}: is not a file; name one of configs/")
    from fedjax_het import experiment
    from fedjax_het.runtime import processes

    config = experiment.plain(values.config)
    run = config.get("run")
    devices = run.get("devices") if isinstance(run, dict) else None
    if isinstance(devices, int):
        processes.divide_cpu(devices)
    return config


def _workers_flag(flag_values: flags.FlagValues) -> None:
    told = "Processes on this machine that share the runs."
    flags.DEFINE_integer("workers", 1, told, lower_bound=1, flag_values=flag_values)


def _start_workers(values: flags.FlagValues, place: Path | None) -> None:
    """Lets `--workers` processes do the runs; this one writes the comparison to `place`, if any."""
    from fedjax_het.runtime import workers
    from fedjax_het.simulation.lock import InUseError, locked

    workers.require_cores(values.workers)
    if values.workers > 1:
        with contextlib.ExitStack() as stack:
            # Whoever holds the directory writes the comparison.
            with contextlib.suppress(InUseError):
                if place is not None:
                    stack.enter_context(locked(place))
            workers.run(values.workers, values.workdir)


def _train_flags(flag_values: flags.FlagValues) -> None:
    _config_flag(flag_values)
    _workdir_flag(flag_values, "Where records, checkpoints and report go.")
    own: Any = {"flag_values": flag_values}
    flags.DEFINE_bool(
        "distributed", False, "Be one of several processes, as a cluster says.", **own
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of the first of several processes.", **own)
    flags.DEFINE_integer("num_processes", None, "How many processes there are.", **own)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", **own)


def _train(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    from fedjax_het import experiment
    from fedjax_het.common.jsonio import jsonable
    from fedjax_het.runtime import processes

    where = (values.coordinator, values.num_processes, values.process_id)
    if values.distributed or where != (None, None, None):
        processes.join(*where)

    def announce(settings: dict[str, Any]) -> None:
        if processes.is_leader():
            print(json.dumps(jsonable(settings), indent=2), flush=True)

    result = experiment.train(_config(values), values.workdir, announce=announce)
    if processes.is_leader():
        print(outcome(result.record, values.workdir))


def outcome(record: "RunRecord", workdir: str) -> str:
    """The last lines of a run: its times, its target metric, and when it reached its targets."""
    from fedjax_het.report.units import number

    def score(value: float | None) -> str:
        return f"{value:.4f}" if metric.share and value is not None else number(value)

    summary, metric = record.summary, record.metric
    lines = [
        f"{summary['name']}: {summary['steps']} rounds, {summary['virtual_s']:.4g} virtual s, "
        f"{summary['wall_s']:.1f} s wall and {summary['compile_s']:.1f} s compiling",
        f"test {metric.label} {score(record.final)} (best {score(record.best)})",
    ]
    for target in summary["targets"]:
        when = target["virtual_s"]
        reached = "not reached" if when is None else f"after {when:.4g} virtual s"
        lines.append(f"  {metric.target(target[metric.name])}: {reached}")
    return "\n".join([*lines, f"report: {workdir}/report.html"])


def _compare_flags(flag_values: flags.FlagValues) -> None:
    _config_flag(flag_values)
    own: Any = {"flag_values": flag_values}
    flags.DEFINE_list("more", [], "Further configuration files on the same data and fleet.", **own)
    flags.DEFINE_list("seeds", None, "Seeds, in place of those of the configuration.", **own)
    _workdir_flag(flag_values, "Where the runs and the comparison go.")
    _workers_flag(flag_values)


def _compare(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    config = _config(values)
    from fedjax_het import experiment
    from fedjax_het.common.writing import usable_path

    configs = [config, *(experiment.load_config(path) for path in values.more)]
    try:
        seeds = None if values.seeds is None else [int(seed) for seed in values.seeds]
    except ValueError as error:
        raise InputError(
            f"--seeds={','.join(values.seeds)}: must be whole numbers; write --seeds=0,1,2"
        ) from error
    _start_workers(values, usable_path(values.workdir, "workdir"))
    result = experiment.compare(configs, values.workdir, seeds)
    print(f"\n{result.headline}\n\n{result.table()}\n\nreport: {values.workdir}/report.html")


def _sweep_flags(flag_values: flags.FlagValues) -> None:
    _config_flag(flag_values)
    _workdir_flag(flag_values, "Where the trials and the best options go.")
    told = "Also compare the methods at their best options."
    flags.DEFINE_bool("then_compare", False, told, flag_values=flag_values)
    _workers_flag(flag_values)


def _sweep(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    settings = _config(values)
    from fedjax_het import experiment, sweeps
    from fedjax_het.common.writing import usable_path

    place = usable_path(values.workdir, "workdir") / "comparison"
    _start_workers(values, place if values.then_compare else None)
    found = sweeps.sweep(settings, values.workdir)
    print(f"\n{found.table()}\n")
    if values.then_compare:
        result = experiment.compare([found.tuned], place)
        print(f"{result.headline}\n\n{result.table()}\n\nreport: {place}/report.html")


def _plan_flags(flag_values: flags.FlagValues) -> None:
    _config_flag(flag_values)
    told = "Directory for the figure and the numbers."
    flags.DEFINE_string("out", None, told, flag_values=flag_values)


def _plan(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    config = _config(values)
    from fedjax_het import experiment
    from fedjax_het.report import preview

    print(preview.text(experiment.plan(config, values.out)))


def _profile_flags(flag_values: flags.FlagValues) -> None:
    _config_flag(flag_values)
    own: Any = {"flag_values": flag_values}
    flags.DEFINE_integer("batch", 32, "Samples per measured step.", lower_bound=1, **own)
    flags.DEFINE_bool("measure", True, "Also time every block on this machine.", **own)
    flags.DEFINE_string("out", None, "Save the measured profile here, as JSON.", **own)


def _profile(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    if values.out:
        out = f"--out={values.out}"
        require(values.measure, out, "needs a measurement to save", "drop --nomeasure")
        require(Path(values.out).parent.is_dir(), out, "must be in a directory", "make it first")
    config = _config(values)
    from fedjax_het import experiment
    from fedjax_het.fleet import profile

    problem = experiment.build_problem(config)
    measured = profile.measure(problem.model, values.batch) if values.measure else None
    print(profile.format_table(problem.cost, measured))
    if measured is not None and values.out:
        measured.save(values.out)


def _report_flags(flag_values: flags.FlagValues) -> None:
    _workdir_flag(flag_values, "Directory that train or compare wrote to.")
    told = "Also write every figure there, as SVG and PDF."
    flags.DEFINE_string("figures", None, told, flag_values=flag_values)


def _report(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    from fedjax_het import experiment

    print(experiment.report(values.workdir, values.figures))


_DIGITS = "--config=configs/digits.py"
train = Command(
    "train",
    "Runs one configuration.",
    [
        f"fedjax-het train {_DIGITS} --workdir=runs/one",
        f"fedjax-het train {_DIGITS} --workdir=runs/two --config.algorithm.learning_rate=0.05",
    ],
    _train_flags,
    _train,
)
compare = Command(
    "compare",
    "Runs methods and seeds side by side.",
    [f"fedjax-het compare {_DIGITS} --workdir=runs/demo --seeds=0,1,2"],
    _compare_flags,
    _compare,
)
sweep = Command(
    "sweep",
    "Tunes every method of a configuration with the same number of trials.",
    [f"fedjax-het sweep {_DIGITS} --workdir=runs/sweep --workers=2 --then_compare"],
    _sweep_flags,
    _sweep,
)
plan = Command(
    "plan",
    "Prints and plots a run's deadlines and batches, without training.",
    ["fedjax-het plan --config=configs/adel_mnist_mlp.py --out=runs/plan"],
    _plan_flags,
    _plan,
)
profile = Command(
    "profile",
    "Prints the cost table of a configuration's model, analytic beside measured.",
    [f"fedjax-het profile {_DIGITS}", f"fedjax-het profile {_DIGITS} --batch=8 --out=profile.json"],
    _profile_flags,
    _profile,
)
report = Command(
    "report",
    "Rebuilds the page of a run or comparison.",
    ["fedjax-het report --workdir=runs/demo --figures=paper/figures"],
    _report_flags,
    _report,
)
