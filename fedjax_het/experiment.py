"""From a configuration to a finished run or comparison; the launch programs are thin over this.

A configuration has five sections, each handed to one registry::

    data       source, data_dir, partition {name, ...}, num_clients, seed, ... -> load_federated
    model      name, ...                                                       -> models.build
    fleet      name, seed, ...                                                 -> fleet.build
    algorithm  name, ...                                                       -> algorithms.build
    run        rounds, ...                                                     -> simulation.Options

and, for comparisons, a sixth: `compare` with `methods` (label -> algorithm section), `seeds` and
`targets`. Unknown sections, names and options are errors, before anything is compiled.
"""

import ast
import runpy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_het import algorithms, models
from fedjax_het.algorithm import Algorithm
from fedjax_het.checkpoint import differences
from fedjax_het.data.load import load_federated
from fedjax_het.data.partition import partitioner
from fedjax_het.errors import InputError, require, require_known
from fedjax_het.evaluation import Evaluator
from fedjax_het.fleet.presets import build as build_fleet
from fedjax_het.problem import Problem
from fedjax_het.report.compare import Comparison
from fedjax_het.report.compare import compare as compare_records
from fedjax_het.report.jsonio import read_json, write_json
from fedjax_het.report.page import write_report
from fedjax_het.report.records import RunRecord
from fedjax_het.simulation import Options, Result, make_cohort, simulate

_SECTIONS = ("data", "model", "fleet", "algorithm", "run", "compare")
_COMPARE = ("methods", "seeds", "targets")


def load_config(path: str) -> Any:
    """What `get_config()` of a configuration file returns.

    Raises:
      InputError: no such file, or none that defines `get_config`.
    """
    require(Path(path).is_file(), f"config {path!r}", "is not a file", "name one of configs/")
    module = runpy.run_path(path)
    require("get_config" in module, f"config {path!r}", "has no get_config()", "see configs/")
    return module["get_config"]()


def plain(config: Any) -> dict[str, Any]:
    """A configuration as nested dictionaries of plain values.

    Command-line overrides of keys that the file does not set arrive as text; numbers, booleans,
    None and tuples among them are read as such.

    Raises:
      InputError: not a mapping, or an unknown section.
    """
    raw = config.to_dict() if hasattr(config, "to_dict") else config
    require(
        isinstance(raw, Mapping),
        f"config of type {type(config).__name__}",
        "must be a mapping of sections",
        f"return a ConfigDict with {', '.join(_SECTIONS)}",
    )

    def value_of(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): value_of(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [value_of(item) for item in value]
        if isinstance(value, str):
            try:
                return value_of(ast.literal_eval(value))
            except (ValueError, SyntaxError):
                return value
        return value

    sections = {str(name): value_of(section) for name, section in raw.items()}
    for name, section in sections.items():
        require_known(name, _SECTIONS, "config section")
        require(
            isinstance(section, dict),
            f"config.{name} = {section!r}",
            "must be a mapping of options",
            "see the files in configs/",
        )
    return sections


def _section(config: Mapping[str, Any], name: str, *required: str) -> dict[str, Any]:
    require(
        name in config, f"config.{name} is missing", "must be given", "see the files in configs/"
    )
    section = dict(config[name])
    for option in required:
        require(
            section.get(option) is not None,
            f"config.{name}.{option} is missing",
            "must be given",
            "see the files in configs/",
        )
    return section


def build_problem(config: Mapping[str, Any]) -> Problem:
    """Data, model and fleet of a plain configuration.

    Raises:
      InputError: unknown or missing options, or parts that do not fit together.
    """
    data_options = _section(config, "data", "source")
    partition = data_options.pop("partition", None)
    num_clients = data_options.get("num_clients")
    if partition is not None:
        require(
            isinstance(partition, dict) and "name" in partition and num_clients is not None,
            f"config.data.partition = {partition!r}, num_clients = {num_clients}",
            "a partition has a name and a number of clients to deal to",
            "e.g. partition = dict(name='dirichlet', alpha=0.5), num_clients = 30",
        )
        partition = partitioner(num_clients=data_options.pop("num_clients"), **partition)
    data = load_federated(data_options.pop("source"), partition=partition, **data_options)
    model = models.build(
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        **_section(config, "model", "name"),
    )
    fleet = build_fleet(num_clients=data.num_clients, **_section(config, "fleet", "name"))
    return Problem(model, data, fleet)


def resolve(config: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """The configuration with the run's defaults filled in, as it is printed and saved."""
    run = asdict(Options.parse(_section(config, "run")))
    for name in ("workdir", "name", "tensorboard"):
        run.pop(name)
    return {
        **config,
        "run": run,
        "cost": {
            "blocks": list(problem.cost.names),
            "full_step_flops_per_sample": float(problem.cost.step_flops()),
            "parameters": int(np.sum(problem.cost.param_count)),
        },
    }


def train(config: Any, workdir: str | Path | None = None, problem: Problem | None = None) -> Result:
    """One run of `config.algorithm`; with a work directory, records, checkpoints and a report.

    Args:
      config: a configuration (ConfigDict or mapping).
      workdir: overrides `config.run.workdir`.
      problem: reuses a problem that was built from the same sections.

    Raises:
      InputError: a configuration that cannot be run.
    """
    settings = plain(config)
    run = _section(settings, "run")
    if workdir is not None:
        run["workdir"] = str(workdir)
    Options.parse(run)
    section = _section(settings, "algorithm", "name")
    problem = problem or build_problem(settings)
    algorithm = algorithms.build(problem=problem, **section)
    return _run({**settings, "run": run}, problem, algorithm)


def _run(
    settings: Mapping[str, Any], problem: Problem, algorithm: Algorithm, **engine: Any
) -> Result:
    """Simulates, and writes the run's page if there is a work directory."""
    recorded = resolve({name: s for name, s in settings.items() if name != "compare"}, problem)
    result = simulate(algorithm, problem, config=recorded, **engine, **settings["run"])
    if settings["run"].get("workdir"):
        write_report(result.record, Path(settings["run"]["workdir"]) / "report.html")
    return result


def compare(
    configs: Sequence[Any], workdir: str | Path, seeds: Sequence[int] | None = None
) -> Comparison:
    """Runs every method of every configuration with every seed on the same data and fleet.

    Interrupted comparisons resume: finished runs are read back, an unfinished one continues.

    Args:
      configs: configurations that agree in data, model and fleet. One with a `compare` section
        contributes its `methods`, any other its `algorithm`.
      workdir: holds a directory per run, and the comparison's table, plots and page.
      seeds: overrides `compare.seeds`.

    Returns:
      The comparison; `comparison.json`, `report.html` and the plots are in `workdir`.

    Raises:
      InputError: configurations that cannot be compared.
    """
    require(bool(configs), "no configuration", "must name at least one", "pass --config=FILE")
    settings = [plain(config) for config in configs]
    first = settings[0]
    for other in settings[1:]:
        for name in ("data", "model", "fleet"):
            differing = differences(first.get(name), other.get(name), name)
            require(
                not differing,
                f"configurations with {differing}",
                "must agree in data, model and fleet to be compared",
                "change one of the files",
            )
    methods: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for setting in settings:
        for label, section in _methods(setting).items():
            require(
                label not in methods, f"method {label!r} twice", "needs its own label", "rename"
            )
            methods[label] = (setting, section)
    options = _section(first, "compare") if "compare" in first else {}
    chosen = list(options.get("seeds", [0]) if seeds is None else seeds)
    require(
        bool(chosen) and len(set(chosen)) == len(chosen),
        f"seeds = {chosen}",
        "must be different whole numbers, at least one",
        "use 0,1,2",
    )
    targets = list(options.get("targets", []))
    problem = build_problem(first)
    # All methods are made before the first one runs, so that a mistake in the last costs nothing.
    made = {
        label: algorithms.build(problem=problem, **section)
        for label, (_, section) in methods.items()
    }
    root = Path(workdir)
    evaluator = Evaluator(problem)
    records: dict[str, list[RunRecord]] = {}
    for label, (setting, section) in methods.items():
        # Seeds are data, so all runs of a method share its compiled programs.
        cohort = make_cohort(made[label], problem, Options.parse(_section(setting, "run")))
        for seed in chosen:
            place = root / _slug(label) / f"seed{seed}"
            run = {**setting["run"], "seed": seed, "name": label, "targets": targets}
            one = {**setting, "algorithm": section, "run": {**run, "workdir": str(place)}}
            result = _run(one, problem, made[label], cohort=cohort, evaluator=evaluator)
            records.setdefault(label, []).append(result.record)
    comparison = compare_records(records, targets, root)
    write_json(root / "config.json", settings)
    return comparison


def _methods(setting: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Label -> algorithm section of a configuration."""
    if "compare" not in setting:
        section = _section(setting, "algorithm", "name")
        return {section["name"]: section}
    options = setting["compare"]
    for name in options:
        require_known(name, _COMPARE, "option of compare")
    base = setting.get("algorithm", {})
    methods = {}
    for label, section in options.get("methods", {}).items():
        same = section.get("name", base.get("name")) == base.get("name")
        # What the methods share is said once, in `algorithm`; a method's own section comes on top.
        shared = (
            base if same else {k: v for k, v in base.items() if k in algorithms.TRAINING_OPTIONS}
        )
        methods[label] = {**shared, **section}
    require(
        bool(methods),
        "config.compare.methods is empty",
        "must map labels to algorithm sections",
        "e.g. methods = {'FedAvg': dict(name='fedavg')}",
    )
    return methods


def _slug(label: str) -> str:
    """A label as the name of a directory."""
    return "".join(c if c.isalnum() else "_" for c in label).lower()


def report(workdir: str | Path) -> Path:
    """Rebuilds the page of a run or of a comparison from its work directory.

    Returns:
      The path of `report.html`.

    Raises:
      InputError: the directory holds neither.
    """
    root = Path(workdir)
    page = root / "report.html"
    if (root / "metrics.jsonl").exists():
        write_report(RunRecord.load(root), page)
        return page
    if not (root / "comparison.json").exists():
        raise InputError(
            f"{root}: holds neither a run (metrics.jsonl) nor a comparison (comparison.json); "
            "name the directory that train or compare wrote to"
        )
    earlier = read_json(root / "comparison.json")
    records: dict[str, list[RunRecord]] = {method["name"]: [] for method in earlier["methods"]}
    loaded = [RunRecord.load(path.parent) for path in root.glob("*/seed*/summary.json")]
    for record in sorted(loaded, key=lambda r: r.summary["seed"]):
        records.setdefault(record.summary["name"], []).append(record)
    compare_records(records, earlier["targets"], root)
    return page
