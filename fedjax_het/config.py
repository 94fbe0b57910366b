"""Configurations: reading, conversion to dictionaries, checks against signatures, and defaults.

A configuration has six sections, each passed to one registry::

    data       source, data_dir or path, partition {name, ...}, num_clients, ... -> load_federated
    model      name, exits, start, trainable, lora, ...                        -> models.build
    objective  name, ... (default: classification)                             -> objectives.build
    fleet      name, seed, ...                                                 -> fleet.build
    algorithm  name, ...                                                       -> algorithms.build
    run        rounds, initial, ...                                            -> RunOptions

and two more: `compare` for comparisons, see `CompareOptions`, and `sweep` for sweeps, see
`sweeps.SweepOptions`. Unknown sections, names and options raise an error before anything is
compiled.
"""

import os
import runpy
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fedjax_het import algorithms, models, objectives
from fedjax_het.common import numbers
from fedjax_het.common.errors import InputError, require, require_known
from fedjax_het.common.files import read_file
from fedjax_het.common.options import check_options, defaults
from fedjax_het.data.load import load_federated
from fedjax_het.data.partition import PARTITIONERS, partitioner
from fedjax_het.data.sources import SOURCES
from fedjax_het.fleet.presets import FLEETS
from fedjax_het.fleet.presets import build as build_fleet
from fedjax_het.problem import Problem, default_objective
from fedjax_het.simulation.options import RunOptions

# Largest file of a configuration in bytes.
_MAX_CONFIG = 2**24
# Largest number of bytes in the label of a method, whose runs have a directory of that name.
_LONGEST_LABEL = 200
_SECTIONS = ("data", "model", "objective", "fleet", "algorithm", "run", "compare", "sweep")


@dataclass(frozen=True)
class CompareOptions:
    """The options of a comparison.

    Attributes:
      methods: dictionary from a label to options that override those of the section `algorithm`. A
        method with another name takes over only the training options of that section that it has.
      seeds: seeds; every method runs once with each.
      targets: values of the target metric (`run.target_metric`); the times to reach them are
        compared.
      reference: label of the method that speed-ups refer to; None takes the first in alphabetical
        order (ConfigDict sorts its keys).
    """

    methods: dict[str, dict[str, Any]]
    seeds: Sequence[int] = (0,)
    targets: Sequence[float] = ()
    reference: str | None = None


def load_config(path: str) -> Any:
    """The result of `get_config()` of a configuration file.

    Raises:
      InputError: if there is no such file, or it is not Python or does not define `get_config`.
    """
    require(os.path.isfile(path), f"config {path!r}", "is not a file", "name one of configs/")
    try:
        # Python would also run an archive or compiled code, so the text is compiled first.
        compile(read_file(path, "name one of configs/", _MAX_CONFIG), path, "exec")
        module = runpy.run_path(path)
    except SyntaxError as error:
        raise InputError(
            f"config {path!r}, line {error.lineno}: is not Python ({error.msg}); correct the file"
        ) from error
    except (MemoryError, RecursionError) as error:
        raise InputError(f"config {path!r}: is nested too deeply; correct the file") from error
    require("get_config" in module, f"config {path!r}", "has no get_config()", "see configs/")
    return module["get_config"]()


def plain(config: Any) -> dict[str, Any]:
    """A configuration as nested dictionaries; tuples become lists, as in the saved JSON.

    Raises:
      InputError: if it is not a mapping or has an unknown section.
    """

    def value_of(value: Any) -> Any:
        value = value.to_dict() if isinstance(value, ConfigDict) else value
        if isinstance(value, Mapping):
            return {str(key): value_of(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [value_of(item) for item in value]
        return value

    try:
        sections = value_of(config)
    except RecursionError:
        raise InputError(
            "config: is nested too deeply, or holds itself; see the files in configs/"
        ) from None
    if not isinstance(sections, dict):
        raise InputError(
            f"config of type {type(config).__name__}: must be a mapping of sections; "
            f"return a ConfigDict with {', '.join(_SECTIONS)}"
        )
    for name, part in sections.items():
        require_known(name, _SECTIONS, "config section")
        require(
            isinstance(part, dict),
            f"config.{name} = {numbers.shown(part)}",
            "must be a mapping of options",
            "see the files in configs/",
        )
    return sections


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy of a section of a plain configuration; raises `InputError` if it is missing."""
    require(
        name in config, f"config.{name} is missing", "must be given", "see the files in configs/"
    )
    return dict(config[name])


def named(
    config: Mapping[str, Any], name: str, key: str = "name", derived: Collection[str] = ()
) -> tuple[str, dict[str, Any]]:
    """The name that a section chooses, and its other options."""
    options = section(config, name)
    chosen = options.pop(key, None)
    require(
        isinstance(chosen, str),
        f"config.{name}.{key} = {numbers.shown(chosen)}",
        "must be given, as text",
        "see the files in configs/",
    )
    for option in derived:
        require(
            option not in options,
            f"config.{name}.{option} = {numbers.shown(options.get(option))}",
            "follows from the rest of the configuration",
            "leave it out",
        )
    return str(chosen), options


def build_problem(config: Mapping[str, Any]) -> Problem:
    """Builds data, model, objective and fleet of a plain configuration.

    Raises:
      InputError: for unknown or missing options, or parts that do not fit together.
    """
    # All sections are checked before data are read, because some data take long to load.
    source, data_options = named(config, "data", "source")
    partition = data_options.pop("partition", None)
    num_clients = data_options.get("num_clients")
    if partition is not None:
        require(
            isinstance(partition, dict) and "name" in partition and num_clients is not None,
            f"config.data.partition = {numbers.shown(partition)}, num_clients = {num_clients}",
            "a partition has a name and a number of clients to deal to",
            "e.g. partition = dict(name='dirichlet', alpha=0.5), num_clients = 30",
        )
        require(
            "num_clients" not in partition,
            f"config.data.partition.num_clients = {partition.get('num_clients')}",
            "belongs to config.data",
            f"leave it out: config.data.num_clients = {num_clients}",
        )
        partition = partitioner(num_clients=data_options.pop("num_clients"), **partition)
    require_known(source, SOURCES, "data set")
    check_options(
        data_options, "option of data", load_federated, SOURCES[source], derived=("source",)
    )
    model, model_options = named(config, "model", derived=("input_shape", "num_classes"))
    fleet, fleet_options = named(config, "fleet", derived=("num_clients",))
    objective = None
    if "objective" in config:
        name, options = named(config, "objective")
        objective = objectives.build(name, **options)
    data = load_federated(source, partition=partition, **data_options)
    objective = objective or default_objective(data)
    outputs = objective.shape(data)
    assert outputs is not None  # ready-made objectives know the shape of their outputs
    return Problem(
        models.build(model, data.input_shape, outputs[-1], **model_options),
        data,
        build_fleet(fleet, data.num_clients, **fleet_options),
        objective=objective,
    )


def resolve(config: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """The configuration with all defaults filled in, in the form that is printed and saved."""
    full: dict[str, Any] = {name: dict(part) for name, part in config.items()}
    if "data" in full:
        data = full["data"]
        full["data"] = {**defaults(load_federated, SOURCES[data["source"]]), **data}
        if data.get("partition") is not None:
            partition = data["partition"]
            filled = {**defaults(PARTITIONERS[partition["name"]]), **partition}
            full["data"]["partition"] = filled
    if "model" in full:
        filled = defaults(models.MODELS[full["model"]["name"]])
        for name in ("input_shape", "num_classes"):
            filled.pop(name, None)
        built = defaults(models.build)
        full["model"] = {**filled, **built, **full["model"]}
    if "objective" in full:
        filled = defaults(objectives.OBJECTIVES[full["objective"]["name"]])
        full["objective"] = {**filled, **full["objective"]}
    if "fleet" in full:
        filled = defaults(FLEETS[full["fleet"]["name"]])
        filled.pop("num_clients", None)
        full["fleet"] = {**filled, **full["fleet"]}
    if "name" in full.get("algorithm", {}):
        full["algorithm"] = algorithms.resolved_options(
            full["algorithm"]["name"], full["algorithm"]
        )
    run = asdict(RunOptions.parse(section(config, "run")))
    for name in ("workdir", "name", "sinks"):
        run.pop(name)
    return {
        **full,
        "run": run,
        "cost": {
            "blocks": list(problem.cost.names),
            "full_step_flops_per_sample": float(problem.cost.step_flops()),
            "parameters": int(np.sum(problem.cost.param_count)),
        },
    }


def methods(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Algorithm sections by label; a configuration without `compare` has one method."""
    if "compare" not in config:
        name, options = named(config, "algorithm")
        return {name: {"name": name, **options}}
    check_options(section(config, "compare"), "option of compare", CompareOptions)
    base = config.get("algorithm", {})
    found = {}
    for label, own in config["compare"]["methods"].items():
        require(
            isinstance(own, dict),
            f"config.compare.methods.{label} = {numbers.shown(own)}",
            "must be a mapping of options",
            "e.g. {'name': 'fedpmt'}, or {} for config.algorithm as it is",
        )
        # `algorithm` holds the options that methods share; a method's own options override them.
        shared = base
        if own.get("name", base.get("name")) != base.get("name"):
            both = set(algorithms.SHARED_OPTIONS) & algorithms.option_names(own["name"])
            shared = {name: value for name, value in base.items() if name in both}
        found[label] = {**shared, **own}
    require(
        bool(found),
        "config.compare.methods = {}",
        "must map labels to algorithm sections",
        "e.g. methods = {'FedAvg': dict(name='fedavg')}",
    )
    reference = config["compare"].get("reference")
    if reference is not None:
        require_known(reference, found, "compare.reference")
        found = {reference: found.pop(reference), **found}
    return found


def require_places(labels: Iterable[str]) -> None:
    """Raises `InputError` unless every label of a method has a directory of its own, its `slug`."""
    places: dict[str, str] = {}
    for label in labels:
        require(
            bool(label.strip()) and len(slug(label).encode()) <= _LONGEST_LABEL,
            f"config.compare.methods, label {numbers.shown(label)}",
            f"names a directory and must have 1 to {_LONGEST_LABEL} bytes",
            "give it a short label, e.g. 'FedAvg'",
        )
        require(
            slug(label) not in places,
            f"methods {places.get(slug(label))!r} and {label!r}",
            "must differ in more than case and punctuation, each has a directory of its own",
            "give one another label under compare.methods",
        )
        places[slug(label)] = label


def slug(label: str) -> str:
    """Converts the label of a method to the name of a directory."""
    return "".join(c if c.isalnum() else "_" for c in label).lower()
